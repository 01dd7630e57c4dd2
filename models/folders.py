"""Any model folder, opened as what it is: our decoder for our formats, a wrapper for other classes.

Everything that trains, federates or evaluates opens and writes models here.
"""

from pathlib import Path

import torch

from models.checkpoint import inspect_model, load_model, save_model
from models.decoder import Decoder
from models.foreign.folder import open_foreign, save_foreign
from models.foreign.model import ForeignModel
from models.formats.families import FAMILIES
from models.formats.files import CheckpointError, inside, read_object
from models.language_model import LanguageModel
from models.tokenizer import Tokenizer


def is_ours(folder: Path) -> bool:
    """Tell whether a model folder's mathematics is our decoder's.

    Raises:
        CheckpointError: no readable `config.json`.

    """
    kind = read_object(inside(folder, "config.json")).get("model_type")
    return any(kind == family.model_type for family in FAMILIES)


def open_model(folder: Path) -> tuple[LanguageModel, Tokenizer]:
    """Read a model folder.

    Raises:
        CheckpointError: see `models.checkpoint.load_model` and
            `models.foreign.folder.open_foreign`; or a tokenizer with more tokens than the model.

    """
    if is_ours(folder):
        return load_model(folder)
    model, tokenizer = open_foreign(folder), Tokenizer.load(folder)
    if tokenizer.vocab_size > model.vocab_size:
        raise CheckpointError(
            f"Expected a tokenizer of at most {model.vocab_size} tokens in {folder}, got "
            f"{tokenizer.vocab_size}. Use the tokenizer that belongs to the model."
        )
    return model, tokenizer


def shape_of(folder: Path) -> LanguageModel:
    """Return a folder's model for its shapes alone: ours without weights, on the meta device.

    Raises:
        CheckpointError: see `open_model`; of ours, values and tokenizer are not looked at.

    """
    if not is_ours(folder):
        return open_model(folder)[0]
    with torch.device("meta"):
        return Decoder(inspect_model(folder).config)


def write_model(model: LanguageModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a merged model as a plain Hugging Face folder; replaces `folder` atomically.

    Raises:
        CheckpointError: adapters are not merged, or a weight is not finite.

    """
    if isinstance(model, Decoder):
        save_model(model, tokenizer, folder)
    else:
        assert isinstance(model, ForeignModel)
        save_foreign(model, folder)
