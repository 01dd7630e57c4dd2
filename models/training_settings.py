"""How a model is trained: what is asked for, apart from the code that does it and loads torch.

No code ever travels: a recipe only says which of the installed ways to train is meant, and both
sides compare its digest.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


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


class OptimiserSettings(BaseModel):
    """Adam on the released sums (post-processing), with a linear rise and a cosine fall.

    Attributes:
        learning_rate: highest rate.
        beta1, beta2: decay of the moments.
        epsilon: added to the root of the second moment.
        warm_up: share of the rounds in which the rate rises.
        bias_correction: take the noise's known variance off the second moment, which otherwise
            measures noise and not gradients.
        noise_floor: least second moment after the correction, as a share of the noise's variance.
        average_decay: decay of an exponential moving average of the parameters, which is handed
            out in their place; 0 hands out the last ones.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    learning_rate: float = Field(default=2e-3, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    warm_up: float = Field(default=0.1, ge=0, lt=1)
    bias_correction: bool = False
    noise_floor: float = Field(default=0.1, gt=0)
    average_decay: float = Field(default=0.0, ge=0, lt=1)


class WarmUp(BaseModel):
    """Settings of the public warm-up: AdamW, linear warm-up, cosine to 3% of the rate.

    Attributes:
        balance, z: weights of the sequence-wise router losses (the router trains only here).
        random_activation: every other step draws k_max and tau at random, so that one checkpoint
            serves few and many experts per token.
        precision: "bf16" computes in bf16 and keeps fp32 master weights.
        checkpoint_blocks: keep only the blocks' inputs for backward; see `Decoder`.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=900, ge=0)
    batch: int = Field(default=16, gt=0)
    sequence_length: int = Field(default=128, gt=1)
    learning_rate: float = Field(default=4e-3, gt=0)
    balance: float = Field(default=1e-2, ge=0)
    z: float = Field(default=1e-3, ge=0)
    random_activation: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_blocks: bool = False
