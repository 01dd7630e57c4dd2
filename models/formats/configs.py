"""`config.json`: a family's spelling to our ModelConfig and back."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from models.config import ModelConfig, RopeScaling
from models.formats.families import LLAMA, MIXTRAL, Family, family_of
from models.formats.files import CheckpointError

# Ours -> theirs, where all families agree.
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "max_positions": "max_position_embeddings",
    "rms_norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
}
_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_positions": "original_max_position_embeddings",
}
_ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_SCALING.values()}


def read_config(hf: Mapping[str, Any]) -> tuple[Family, ModelConfig]:
    """Read a `config.json` of a family.

    Keys renamed between versions of transformers are read in both spellings; where both stand and
    disagree, the file is refused. A missing key has the value that the family's class gives it.

    Raises:
        CheckpointError: another family, an option this decoder does not compute, a missing key, a
            value of the wrong type or out of range.

    """
    family = family_of(hf)
    spelled = {**family.defaults, **{key: value for key, value in hf.items() if value is not None}}
    _check_required(family, spelled)
    values = {ours: _needed(spelled, theirs) for ours, theirs in _FIELDS.items()}
    values |= _attention(family, spelled)
    values |= _experts(family, spelled)
    try:
        values |= _rope(hf, family)
        return family, ModelConfig(**values, qk_norm=family.qk_norm)
    except ValidationError as error:
        raise CheckpointError(_first_problem(error)) from error


def write_config(config: ModelConfig, family: Family) -> dict[str, Any]:
    """Return the `config.json` of a family's folder; renamed keys in both spellings."""
    hf = {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}
    hf |= {"num_key_value_heads": config.kv_heads, "head_dim": config.head_dim}
    if family.router is not None:
        hf |= {"num_experts": config.experts, "num_local_experts": config.experts}
        hf |= {"num_experts_per_tok": config.experts_per_token, "router_aux_loss_coef": 0.0}
    hf |= {"intermediate_size": config.expert_hidden_size, "rope_theta": config.rope_theta}
    hf |= {family.expert_width: config.expert_hidden_size}
    hf |= {"model_type": family.model_type, "architectures": [family.architecture]}
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        scaling = {theirs: getattr(config.rope_scaling, ours) for ours, theirs in _SCALING.items()}
        rope = {"rope_type": "llama3", **scaling}
        hf["rope_scaling"] = rope
    hf["rope_parameters"] = {**rope, "rope_theta": config.rope_theta}
    if family is MIXTRAL:
        hf["sliding_window"] = None
    return {**hf, **family.required}


def _check_required(family: Family, spelled: Mapping[str, Any]) -> None:
    for key, expected in family.required.items():
        if spelled[key] != expected:
            raise CheckpointError(
                f"Expected {key} = {expected!r} of a {family.model_type} model, got "
                f"{spelled[key]!r}, which this decoder does not compute."
            )
    window = spelled.get("sliding_window") if family is MIXTRAL else None
    positions = _needed(spelled, "max_position_embeddings")
    if window is not None and not (type(window) is type(positions) is int and window >= positions):
        raise CheckpointError(
            f"Expected no sliding_window below max_position_embeddings, got {window!r} of "
            f"{positions!r}: this decoder attends to every position. Lower "
            "max_position_embeddings to the window."
        )
    kinds = spelled.get("layer_types", [])
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise CheckpointError("Expected full attention in every layer, got other layer_types.")


def _needed(spelled: Mapping[str, Any], key: str) -> Any:
    if spelled.get(key) is None:
        raise CheckpointError(f"Expected {key} in config.json, got none. Copy the file again.")
    return spelled[key]


def _attention(family: Family, spelled: Mapping[str, Any]) -> dict[str, Any]:
    heads, hidden = (_needed(spelled, key) for key in ("num_attention_heads", "hidden_size"))
    if type(heads) is not int or type(hidden) is not int or heads < 1:
        raise CheckpointError(
            "Expected num_attention_heads and hidden_size to be positive integers in config.json, "
            f"got {heads!r} and {hidden!r}."
        )
    kv_heads = heads if family is LLAMA else _needed(spelled, "num_key_value_heads")
    return {
        "kv_heads": spelled.get("num_key_value_heads", kv_heads),
        "head_dim": spelled.get("head_dim", hidden // heads),
    }


def _experts(family: Family, spelled: Mapping[str, Any]) -> dict[str, Any]:
    width = _needed(spelled, family.expert_width)
    if family.router is None:
        return {"experts": 1, "experts_per_token": 1, "expert_hidden_size": width}
    keys = [key for key in ("num_experts", "num_local_experts") if key in spelled]
    experts = _needed(spelled, keys[0] if keys else "num_experts")
    if any(spelled[key] != experts for key in keys):
        raise CheckpointError(
            f"Expected num_experts and num_local_experts to agree, got {spelled[keys[0]]!r} and "
            f"{spelled[keys[-1]]!r}. Remove the wrong one from config.json."
        )
    per_token = _needed(spelled, "num_experts_per_tok")
    return {"experts": experts, "experts_per_token": per_token, "expert_hidden_size": width}


def _rope(hf: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Rotary positions: `rope_parameters`, or the older `rope_theta` and `rope_scaling`."""
    rope = _rope_object(hf)
    theta = _one_theta(hf, rope, family)
    kind = rope.get("rope_type", rope.get("type", "default"))
    whole = all(each.get("partial_rotary_factor") in (None, 1) for each in (hf, rope))
    if kind not in ("default", "llama3") or not whole:
        raise CheckpointError(
            f"Expected rope_type 'default' or 'llama3' over whole heads, got {kind!r}"
            f"{'' if whole else ' over a part of them'}, which this decoder does not compute."
        )
    if kind == "default":
        return {"rope_theta": theta}
    key = _SCALING["original_max_positions"]
    first = hf.get(key) or rope.get(key) or hf.get("max_position_embeddings")
    values = {ours: _needed({**rope, key: first}, theirs) for ours, theirs in _SCALING.items()}
    return {"rope_theta": theta, "rope_scaling": RopeScaling(**values)}


def _rope_object(hf: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the one description of rotary positions that stands in a `config.json`."""
    old, new = hf.get("rope_scaling") or {}, hf.get("rope_parameters") or {}
    for each in (old, new):
        if not isinstance(each, dict) or set(each) - _ROPE_KEYS:
            raise CheckpointError(
                f"Expected rotary parameters out of {', '.join(sorted(_ROPE_KEYS))}, got {each!r}."
            )
    both = set(old) & set(new)
    if any(old[key] != new[key] for key in both):
        raise CheckpointError(
            "Expected rope_scaling and rope_parameters to agree, got different values. Remove the "
            "wrong one from config.json."
        )
    return {**new, **old}


def _one_theta(hf: Mapping[str, Any], rope: Mapping[str, Any], family: Family) -> Any:
    thetas = [each["rope_theta"] for each in (hf, rope) if each.get("rope_theta") is not None]
    if len(thetas) == 2 and thetas[0] != thetas[1]:
        raise CheckpointError(
            f"Expected one rope_theta, got {thetas[0]!r} and {thetas[1]!r}. Remove the wrong one "
            "from config.json."
        )
    return thetas[0] if thetas else family.defaults["rope_theta"]


def _first_problem(error: ValidationError) -> str:
    """One line of what is wrong, under the key of `config.json`."""
    first = error.errors()[0]
    if not first["loc"]:
        return str(first["msg"]).removeprefix("Value error, ")
    ours = str(first["loc"][-1])
    names = {**_FIELDS, "kv_heads": "num_key_value_heads", "experts": "num_experts"}
    names |= {"experts_per_token": "num_experts_per_tok", **_SCALING}
    names["expert_hidden_size"] = "the experts' intermediate size"
    value = f"{first['input']!r:.80}"
    return f"Expected a valid {names.get(ours, ours)} in config.json, got {value}: {first['msg']}."
