"""Kinds of artefact and the papers in their folders, by name; nothing heavy is loaded for it."""

from typing import Literal, get_args

Container = Literal["gguf", "hf", "onnx"]
CONTAINERS: tuple[Container, ...] = get_args(Container)

PASSPORT, CARD, ATTESTATION = "variant.json", "MODEL_CARD.md", "variant.intoto.json"
