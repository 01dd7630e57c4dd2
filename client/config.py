"""A node's own settings: `node.toml` in its home, written by the institution."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from client.data import DataConfig
from models.device import Device
from models.faults import first_fault

CONSENT_FILE = "consent.toml"
LEDGER_FOLDER = "ledger"
NODE_FILE = "node.toml"
IDENTITY_FILE = "identity.key"


class NodeError(ValueError):
    """A node that cannot run as it is configured."""


class NodeConfig(BaseModel):
    """What the institution's node works with; paths are relative to the node's home.

    Attributes:
        name: the node's name in its federation.
        data: the shard, a file or folder of records.
        fields: what the shard's fields mean.
        base_model: model folder that runs start from.
        heldout, validation: shares of record groups that are never trained on.
        part, parts: this node holds the units whose hash falls to `part` of `parts`.
        chunk_sequences: sequences processed at once; a unit that has more is processed in pieces
            and clipped whole. None: 32, or as many as need about 2 GiB, on a GPU a quarter of its
            memory. 1 computes every unit alone, which keeps a model built to enlarge rounding from
            coupling them (docs/privacy.md, section 10).
        two_passes: find the norms in one pass and clip in a second: less memory, more time. In
            fp32 only.
        device: "cuda" trains rounds on the GPU that torch sees.
        precision: "bf16" computes in bf16 under fp32 weights, in draws that are padded.
        pad_draws: process every draw in the same number of chunks, so that the time a round takes
            does not tell how many units were drawn.
        proxy: URL of the HTTP CONNECT proxy that the node dials through; "" dials directly, and
            without this key HTTPS_PROXY holds.
        seed: of a seeded simulation, whose noise anyone can recompute; None takes noise from the
            operating system.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}$")]
    data: Path
    fields: DataConfig
    base_model: Path
    heldout: float = Field(default=0.1, ge=0, lt=1)
    validation: float = Field(default=0.1, ge=0, lt=1)
    part: int = Field(default=0, ge=0)
    parts: int = Field(default=1, ge=1)
    chunk_sequences: int | None = Field(default=None, ge=1)
    two_passes: bool = False
    device: Device = Device.CPU
    precision: Literal["fp32", "bf16"] = "fp32"
    pad_draws: bool = True
    proxy: str | None = Field(default=None, repr=False)
    seed: int | None = Field(default=None, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _bf16_fits(self) -> Self:
        if self.precision == "bf16" and not self.pad_draws:
            raise ValueError(
                'precision = "bf16" needs pad_draws = true: in other shapes a unit would round '
                "otherwise, and so tell of its company"
            )
        if self.precision == "bf16" and self.two_passes:
            raise ValueError(
                'two_passes = true needs precision = "fp32": autograd would round sums to bf16'
            )
        return self


def load_node_config(home: Path) -> NodeConfig:
    """Read `node.toml` of a node's home, with paths made absolute.

    Raises:
        NodeError: missing, not TOML, or a key that is unknown or out of its range.

    """
    path = home / NODE_FILE
    try:
        config = NodeConfig(**tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except ValidationError as error:
        raise NodeError(
            f"{path}: {first_fault(error, 'node', NodeConfig)}. Correct this key."
        ) from error
    except (OSError, ValueError) as error:
        raise NodeError(
            f"Expected the node's settings, a readable TOML file, at {path}, got: {error}. "
            "arion node consent draft writes them."
        ) from error
    places = {"data": home / config.data, "base_model": home / config.base_model}
    return config.model_copy(update=places)
