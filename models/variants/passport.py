"""A variant's passport: what it is, what it came from, how it was checked, digests of its files.

`variant.json` is for programs, `MODEL_CARD.md` says the same in sentences. What was not measured is
null there and named as such here; nothing is filled in.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    FiniteFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from models.durable import file_digest
from models.expert_module import PrivacyClaim
from models.faults import first_fault
from models.formats.files import CheckpointError, inside
from models.names import Digest, OwnerName, Statement
from models.variants.check import Checked
from models.variants.claims import Audited, LedgerClaim
from models.variants.compare import Difference
from models.variants.contents import Contents
from models.variants.distil import Distillation
from models.variants.extras import VariantError
from models.variants.frozen import Frozen
from models.variants.kinds import KINDS
from models.variants.names import ATTESTATION, PASSPORT, Container

Use = Literal["held-out", "calibration", "distillation"]


class TextFigures(Frozen):
    """The artefact beside a model on one text.

    Attributes:
        loss, model_loss: nats per token of the artefact, and of the model.
        kl: mean KL divergence from the model to the artefact, nats per token.
        top1: share of tokens with the same likeliest one.
        largest_difference: of a logit.

    """

    text: str
    tokens: int = Field(gt=0)
    loss: FiniteFloat
    model_loss: FiniteFloat
    kl: float = Field(ge=0, allow_inf_nan=False)
    top1: float = Field(ge=0, le=1)
    largest_difference: FiniteFloat


class Verification(Frozen):
    """The run in the artefact's own runtime.

    Attributes:
        fidelity: beside a decoder of the artefact's own weights; quality: beside the parent.
        tokens_per_s: decoding one text on the machine that made the artefact.
        resident_bytes: of the runtime with `context` positions, null where not measurable.
        joules_per_1000_tokens: of the whole processor package, null where not measurable.

    """

    runtime: str
    token_ids_equal: Literal[True] = True
    fidelity: tuple[TextFigures, ...]
    quality: tuple[TextFigures, ...]
    tokens_per_s: float = Field(gt=0)
    threads: int = Field(gt=0)
    context: int = Field(gt=0)
    resident_bytes: int | None
    joules_per_1000_tokens: float | None
    machine: str


class Missing(Frozen):
    """Why nothing was verified: the extra that was not installed."""

    missing_extra: str


class PublicSource(Frozen):
    """Public text that took part.

    Attributes:
        use: "held-out" measured the quality, "calibration" chose experts, "distillation" trained
            a student (and chose its experts and layers, where there is no text for that).
        source, licence: as its `public.toml` states. files: SHA-256 by name.

    """

    name: str
    use: Use
    source: Statement
    licence: Statement
    files: dict[str, Digest]


class OwnerShare(Frozen):
    """Whose experts are inside, over all layers, with the claim of the owner's card."""

    owner: OwnerName
    experts: int = Field(gt=0)
    module: Digest | None = None
    privacy: PrivacyClaim | Literal["not private"] | None = None
    licence: str | None = None


class Passport(Frozen):
    """Everything that is claimed of an artefact.

    Attributes:
        parent: its name; parent_digest: `model_digest` of the whole model.
        kept: per layer of the artefact, the parent's experts that it holds, as they are or joined
            into one. chosen_by: how.
        distillation: how a dense student was made; None for a model of the parent's own weights,
            whose passport does not name it then.
        ledger: empty where no ledger was given. audited: None where no canaries were given; a
            passport does not name it then.
        contents: what the artefact's own files say of themselves.
        notes: what a user must know. files: SHA-256 of every other file but the attestation.

    """

    format: Literal[1] = 1
    tier: str
    container: Container
    number_format: str
    parent: str
    parent_digest: Digest
    parent_experts: int
    kept: tuple[tuple[int, ...], ...]
    chosen_by: str
    distillation: Distillation | None = None
    contents: Contents
    owners: tuple[OwnerShare, ...]
    texts: tuple[PublicSource, ...]
    ledger: tuple[LedgerClaim, ...]
    audited: Audited | None = None
    verification: Verification | Missing
    file_bytes: int
    notes: tuple[str, ...]
    files: Annotated[dict[str, Digest], Field(min_length=1)]

    @model_serializer(mode="wrap")
    def _as_signed(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Attestations signed before there were these fields do not name them, and hold on.
        said: dict[str, Any] = handler(self)
        for name in ("distillation", "audited"):
            if getattr(self, name) is None:
                said.pop(name, None)
        return said


def figures(by_text: dict[str, Difference]) -> tuple[TextFigures, ...]:
    """What a passport says of a comparison."""
    return tuple(
        TextFigures(
            text=name,
            tokens=each.tokens,
            loss=each.nats / each.tokens,
            model_loss=each.model_nats / each.tokens,
            kl=max(each.kl, 0.0),  # rounding may take it below
            top1=each.agreed / each.tokens,
            largest_difference=each.largest,
        )
        for name, each in by_text.items()
    )


def verification(found: Checked, context: int, machine: str) -> Verification:
    """What a passport says of a run that nothing failed in."""
    return Verification(
        runtime=found.runtime,
        fidelity=figures(dict(found.fidelity)),
        quality=figures(dict(found.quality)),
        tokens_per_s=found.probe.tokens_per_s,
        threads=found.probe.threads,
        context=context,
        resident_bytes=found.probe.resident_bytes,
        joules_per_1000_tokens=found.probe.joules_per_1000_tokens,
        machine=machine,
    )


def read_passport(folder: Path) -> Passport:
    """Read a passport; no file is checked.

    Raises:
        VariantError: none there, or not one.

    """
    path = folder / PASSPORT
    if not path.is_file():
        raise VariantError(
            f"Expected {PASSPORT} in {folder}, got none. Point at a folder that `arion model "
            "export` wrote."
        )
    try:
        return Passport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise VariantError(
            f"Expected a passport at {path}, got {first_fault(error)}. Take the artefact from "
            "where it was published."
        ) from error


def verify_artefact(folder: Path) -> Passport:
    """Check an artefact against its passport: every byte, and what its files say of themselves.

    Raises:
        MissingExtraError: the library that reads the artefact's container is not installed.
        VariantError: a file that is missing, changed, surplus or a link out of the folder; another
            tokenizer, architecture or number of experts than the passport's.

    """
    passport = read_passport(folder)
    found = {path.name for path in folder.iterdir()} - {PASSPORT, ATTESTATION}
    surplus = sorted(found - passport.files.keys())
    if surplus and (missing := sorted(passport.files.keys() - found)):
        raise VariantError(
            f"Expected {', '.join(missing)}, which {PASSPORT} names, got {', '.join(surplus)} in "
            "its place. Give it its name again."
        )
    if surplus:
        raise VariantError(
            f"Expected only the files that {PASSPORT} names, got {', '.join(surplus)} too. Remove "
            "what was added."
        )
    for name, digest in passport.files.items():
        _verify_file(folder, name, digest)
    _verify_contents(KINDS[passport.container].inspect(folder), passport)
    return passport


def _verify_file(folder: Path, name: str, digest: str) -> None:
    try:
        path = inside(folder, name)
    except CheckpointError as error:
        raise VariantError(str(error)) from error
    if not path.is_file():
        raise VariantError(f"Expected {name} in {folder}, got none. Copy the whole folder.")
    if file_digest(path) != digest:
        raise VariantError(
            f"Expected {name} as {PASSPORT} names it, got other bytes. Take the artefact from "
            "where it was published."
        )


def _verify_contents(found: Contents, passport: Passport) -> None:
    wanted, taught = passport.contents, passport.distillation
    held = wanted.experts if taught is None else taught.joined
    if len(passport.kept) != wanted.layers or set(map(len, passport.kept)) != {held}:
        raise VariantError(
            f"Expected {held} experts of each of {wanted.layers} layers in {PASSPORT}, got another "
            "list. The passport is not of this artefact."
        )
    if taught is not None and (wanted.experts != 1 or len(taught.layers) != wanted.layers):
        raise VariantError(
            f"Expected a student of one expert per layer and {len(taught.layers)} layers as "
            f"{PASSPORT} says, got {wanted.experts} experts and {wanted.layers} layers. The "
            "passport is not of this artefact."
        )
    for field, was in wanted:
        if (now := getattr(found, field)) != was:
            raise VariantError(
                f"Expected {field.replace('_', ' ')} {was} as {PASSPORT} says, got {now}. The "
                "artefact is another one, or was put together from several."
            )
