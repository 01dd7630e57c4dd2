"""The base of what artefacts' files say: never altered, and nothing in it that is not known."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A part of a passport, an index or a receipt."""

    model_config = ConfigDict(frozen=True, extra="forbid")
