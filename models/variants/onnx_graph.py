"""The graph of a decoder in ONNX Runtime's operators, node by node; nothing is traced.

    input_ids       int64 [batch, tokens]          the tokens that follow what the cache holds
    attention_mask  int64 [batch, cached + tokens] ones; its length is that of cache and tokens
    past_key_values.LAYER.key|value   [batch, kv heads, cached, head width], cached >= 0
    logits          fp32 [batch, tokens, vocabulary]
    present.LAYER.key|value           [batch, kv heads, cached + tokens, head width]

These are onnxruntime-genai's names. Experts are com.microsoft's MoE or, rounded, QMoE, and a single
one, which nothing routes to, is products as those of attention are. Attention is its
GroupQueryAttention, which also rotates; head norms stand before it, as its kernel for
processors has none.
"""

from typing import Any

from models.config import ModelConfig
from models.variants.onnx_tensors import (
    BLOCK,
    CODES,
    HEAD,
    NORM,
    SCALES,
    TABLE,
    ZEROS,
    OnnxFormat,
    bits_of,
)

_MICROSOFT = "com.microsoft"
_OPSET, _IR = 21, 10
_ROUNDED_ACTIVATIONS = 4  # accuracy_level of MatMulNBits and QMoE: int8 products
CONSTANT = "constant."  # begins the names of what is no weight
_PARTS, _HEADS, _FLAT = (CONSTANT + name for name in ("parts", "heads", "flat"))
COS, SIN = CONSTANT + "cos", CONSTANT + "sin"
_ROWS, _ONE = CONSTANT + "rows", CONSTANT + "one"


class Graph:
    """Collects nodes; `model` puts them together with the weights.

    Args:
        onnx: the library. config: of the decoder. kind: of its matrices.

    """

    def __init__(self, onnx: Any, config: ModelConfig, kind: OnnxFormat) -> None:
        self._onnx, self._config, self._kind = onnx, config, kind
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._integers: dict[str, list[int]] = {_ONE: [1], _ROWS: [-1, config.experts]}
        self._value("input_ids", "INT64", ["batch", "tokens"])
        self._value("attention_mask", "INT64", ["batch", "total"])
        self._lengths()
        x = self._embed()
        for layer in range(config.layers):
            x = self._layer(layer, x)
        self._project(self._norm(x, NORM), self._head(), config.vocab_size, "logits")
        self._value("logits", "FLOAT", ["batch", "tokens", config.vocab_size], is_output=True)

    def model(self, weights: list[Any], said: dict[str, str]) -> Any:
        """Return the whole model.

        Args:
            weights: initialisers. said: texts that the file carries.

        """
        helper, numbers = self._onnx.helper, self._onnx.TensorProto.INT64
        constants = [
            helper.make_tensor(name, numbers, [len(values)], values)
            for name, values in self._integers.items()
        ]
        graph = helper.make_graph(
            self._nodes, "decoder", self._inputs, self._outputs, [*constants, *weights]
        )
        imports = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        found = helper.make_model(graph, opset_imports=imports, ir_version=_IR)
        helper.set_model_props(found, said)
        return found

    def _node(
        self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any
    ) -> str:
        made = self._onnx.helper.make_node(kind, inputs, outputs, domain=domain, **attributes)
        self._nodes.append(made)
        return outputs[0]

    def _value(
        self, name: str, kind: str, shape: list[int | str], *, is_output: bool = False
    ) -> None:
        number = getattr(self._onnx.TensorProto, kind)
        made = self._onnx.helper.make_tensor_value_info(name, number, shape)
        (self._outputs if is_output else self._inputs).append(made)

    def _lengths(self) -> None:
        """What attention asks for: each sequence's last position, and the length of the cache."""
        int32 = self._onnx.TensorProto.INT32
        self._node("ReduceSum", ["attention_mask", _ONE], ["lengths"], keepdims=0)
        self._node("Sub", ["lengths", _ONE], ["last_positions"])
        self._node("Cast", ["last_positions"], ["seqlens"], to=int32)
        self._node("Shape", ["attention_mask"], ["mask_shape"], start=1, end=2)
        self._node("Squeeze", ["mask_shape"], ["total_long"])
        self._node("Cast", ["total_long"], ["total_length"], to=int32)

    def _embed(self) -> str:
        bits = bits_of(TABLE, self._kind)
        if bits == 32:
            return self._node("Gather", [TABLE, "input_ids"], ["embedded"])
        return self._node(
            "GatherBlockQuantized",
            [TABLE + CODES, "input_ids", TABLE + SCALES],
            ["embedded"],
            _MICROSOFT,
            bits=bits,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )

    def _layer(self, layer: int, x: str) -> str:
        prefix = f"layers.{layer}."
        mixed = self._attention(prefix, layer, self._norm(x, prefix + "attention_norm"))
        x = self._node("Add", [x, mixed], [prefix + "attended"])
        feed_forward = self._experts if self._config.experts > 1 else self._dense
        found = feed_forward(prefix, self._norm(x, prefix + "experts_norm"))
        return self._node("Add", [x, found], [prefix + "after"])

    def _norm(self, x: str, weight: str) -> str:
        epsilon = self._config.rms_norm_eps
        return self._node(
            "SimplifiedLayerNormalization", [x, weight], [weight + ".of"], axis=-1, epsilon=epsilon
        )

    def _attention(self, prefix: str, layer: int, x: str) -> str:
        config = self._config
        rows = (config.heads + 2 * config.kv_heads) * config.head_dim
        qkv = self._project(x, prefix + "qkv", rows, prefix + "qkv.of")
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        for names, length in ((past, "cached"), (present, "total")):
            shape: list[int | str] = ["batch", config.kv_heads, length, config.head_dim]
            for name in names:
                self._value(name, "FLOAT", shape, is_output=names is present)
        heads = [qkv, "", ""] if config.qk_norm == "none" else self._normed_heads(prefix, qkv)
        seen = self._node(
            "GroupQueryAttention",
            [*heads, *past, "seqlens", "total_length", COS, SIN],
            [prefix + "seen", *present],
            _MICROSOFT,
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            do_rotary=1,
        )
        return self._project(seen, prefix + "out", config.hidden_size, prefix + "out.of")

    def _normed_heads(self, prefix: str, qkv: str) -> list[str]:
        """Queries, keys and values; the first two normalised head by head."""
        config, parts = self._config, [prefix + part for part in ("q", "k", "v")]
        counts = (config.heads, config.kv_heads, config.kv_heads)
        self._integers[_PARTS] = [count * config.head_dim for count in counts]
        self._node("Split", [qkv, _PARTS], parts, axis=-1)
        self._integers[_HEADS] = [0, 0, -1, config.head_dim]
        self._integers[_FLAT] = [0, 0, -1]
        for part in parts[:2]:
            self._node("Reshape", [part, _HEADS], [part + ".heads"])
            normed = self._norm(part + ".heads", part + "_norm")
            self._node("Reshape", [normed, _FLAT], [part + ".flat"])
        return [parts[0] + ".flat", parts[1] + ".flat", parts[2]]

    def _experts(self, prefix: str, x: str) -> str:
        config = self._config
        logits = self._project(x, prefix + "router", config.experts, prefix + "router.of")
        rows = self._node("Reshape", [logits, _ROWS], [prefix + "router.rows"])
        shared = {
            "k": config.experts_per_token,
            "activation_type": "swiglu",
            "swiglu_fusion": 1,  # gate and up rows in turn; the processor has no other
            "activation_alpha": 1.0,
            "activation_beta": 0.0,
            "normalize_routing_weights": 1,
        }
        gate_up, down, out = prefix + "gate_up", prefix + "down", [prefix + "experts.of"]
        bits = bits_of(gate_up, self._kind)
        if bits == 32:
            return self._node("MoE", [x, rows, gate_up, "", down], out, _MICROSOFT, **shared)
        inputs = [gate_up + CODES, gate_up + SCALES, "", down + CODES, down + SCALES]
        rounding = {"expert_weight_bits": bits, "block_size": BLOCK}
        if bits == 4:  # with 8 its products are int8 anyway, and runtimes before 1.31 know no level
            inputs += ["", "", "", "", gate_up + ZEROS, down + ZEROS]
            rounding["accuracy_level"] = _ROUNDED_ACTIVATIONS
        return self._node("QMoE", [x, rows, *inputs], out, _MICROSOFT, **shared, **rounding)

    def _dense(self, prefix: str, x: str) -> str:
        """down(silu(gate x) * up x)."""
        config, gate, up = self._config, prefix + "gate", prefix + "up"
        width = config.expert_hidden_size
        both = self._project(x, prefix + "gate_up", 2 * width, prefix + "gate_up.of")
        self._node("Split", [both], [gate, up], axis=-1, num_outputs=2)
        sigmoid = self._node("Sigmoid", [gate], [gate + ".sigmoid"])
        silu = self._node("Mul", [gate, sigmoid], [gate + ".silu"])
        inner = self._node("Mul", [silu, up], [prefix + "inner"])
        return self._project(inner, prefix + "down", config.hidden_size, prefix + "experts.of")

    def _head(self) -> str:
        return TABLE if self._config.tie_embeddings else HEAD

    def _project(self, x: str, weight: str, outputs: int, name: str) -> str:
        """X W^T of a matrix that lies [outputs, inputs]."""
        bits = bits_of(weight, self._kind)
        if bits == 32:
            return self._node("FusedMatMul", [x, weight], [name], _MICROSOFT, transB=1)
        config, wide = self._config, self._config.hidden_size
        if weight.endswith(".out"):
            wide = config.heads * config.head_dim
        elif weight.endswith(".down"):
            wide = config.expert_hidden_size
        block_bytes = BLOCK * bits // 8
        shape = CONSTANT + weight
        self._integers[shape] = [outputs, wide // BLOCK, block_bytes]
        codes = self._node("Reshape", [weight + CODES, shape], [weight + ".blocks"])
        return self._node(
            "MatMulNBits",
            [x, codes, weight + SCALES, *([weight + ZEROS] if bits == 4 else [])],
            [name],
            _MICROSOFT,
            K=wide,
            N=outputs,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=_ROUNDED_ACTIVATIONS,
        )
