"""Small random models and tokenizers for artefacts: every architecture that is written."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers import models as bpe
from tokenizers.trainers import BpeTrainer

from models.config import ModelConfig, RopeScaling
from models.decoder import Decoder
from models.tokenizer import Tokenizer
from models.variants import gguf_tokenizer

TEXTS = [
    "The patient was seen on ward seven, at 10:45; blood pressure 120/80.",
    "Zwölf Boxkämpfer jagen Viktor. 환자는 오전에 병동에서 진료를 받았다. 🙂\n\ttab  two  spaces",
    "def f(x):\n    return x ** 2\n" * 3,
]
SHAPES = {
    "qwen3moe": {"experts": 4, "experts_per_token": 2},
    "qwen3": {"experts": 1, "experts_per_token": 1},
    "llama": {"experts": 1, "experts_per_token": 1, "qk_norm": "none"},
    "llama moe": {"experts": 4, "experts_per_token": 2, "qk_norm": "none"},
    "llama moe, stretched": {
        "experts": 4, "experts_per_token": 2, "qk_norm": "none", "tie_embeddings": False,
        "rope_scaling": RopeScaling(
            factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=16
        ),
    },
}  # fmt: skip


def tokenizer() -> Tokenizer:
    """Ours: GPT-2's pre-tokeniser."""
    return Tokenizer.train(TEXTS * 3, 320)


def named_tokenizer(folder: Path, pre: str) -> Tokenizer:
    """Qwen2's or Llama 3's, trained small; chat tokens, and one added token that is not special."""
    split = next(
        split for (split, _), name in gguf_tokenizer.NAMES.items() if name == pre and split
    )
    llama = pre == "llama-bpe"
    backend = Backend(bpe.BPE(ignore_merges=llama))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    if not llama:
        backend.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXTS * 3, BpeTrainer(vocab_size=310, initial_alphabet=alphabet))
    backend.add_special_tokens(
        [AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_end|>")]
    )
    backend.add_tokens(["<think>"])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    stops = [backend.token_to_id(t) for t in ("<|endoftext|>", "<|im_end|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return Tokenizer.load(folder)


def decoder(shape: str, hidden: int = 64, **more: object) -> Decoder:
    """A random model whose logits are spread as a trained one's are."""
    sizes = {
        "vocab_size": 330, "hidden_size": hidden, "layers": 2, "heads": 4, "kv_heads": 2,
        "head_dim": 32, "expert_hidden_size": 96, "max_positions": 128, "initializer_range": 0.2,
    }  # fmt: skip
    config = ModelConfig.model_validate({**sizes, **SHAPES[shape], **more})
    model = Decoder(config, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.normal_(1.0, 0.2, generator=generator)
    return model
