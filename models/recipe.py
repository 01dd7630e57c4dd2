"""What a recipe of local training leaves trainable."""

import torch

from models.language_model import LanguageModel
from models.lora import add_lora
from models.training_settings import Recipe


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
