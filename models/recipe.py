"""The local training recipe: a name out of a fixed list, and its validated parameters.

No code ever travels: a recipe only says which of the installed ways to train is meant, and both
sides compare its digest.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from models.language_model import LanguageModel
from models.lora import add_lora


class Recipe(BaseModel):
    """Which parameters are trained, and how a unit's text becomes sequences.

    Attributes:
        kind: "full" trains everything but the routers; "lora" trains adapters on attention and
            experts.
        lora_rank, lora_alpha: R and the update's scale alpha / R; unused by "full".
        lora_seed: public seed of the adapters' first values.
        sequence_length: targets of one sequence, in tokens.
        sequences_per_unit: cap on the sequences of one privacy unit; the rest of its text is not
            used.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["full", "lora"] = "full"
    lora_rank: int = Field(default=8, ge=1, le=1024)
    lora_alpha: float = Field(default=16.0, gt=0)
    lora_seed: int = Field(default=0, ge=0, lt=2**53)
    sequence_length: int = Field(default=128, ge=2, le=131072)
    sequences_per_unit: int = Field(default=1, ge=1, le=64)


def prepare(model: LanguageModel, recipe: Recipe) -> None:
    """Leave exactly the recipe's parameters trainable; routers are frozen in every recipe.

    Raises:
        ValueError: a length that the model does not take, adapters that are already there, or full
            training of a class that trains through adapters only.

    """
    model.check_length(recipe.sequence_length)
    if recipe.kind == "lora":
        generator = torch.Generator().manual_seed(recipe.lora_seed)
        add_lora(model, recipe.lora_rank, recipe.lora_alpha, generator)
    else:
        model.train_in_full()
