"""A dense student of a model: its shape so that a plan fits, its lesson, and its training.

The teacher holds the experts of the owners that were asked for and of no others, and all text is
public (`arion.public_text`): nothing private takes part in a distillation.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from arion.progress import Progress
from arion.public_text import PublicText
from arion.variant_selection import (
    WORDS,
    Choice,
    Criterion,
    Selected,
    allowed_experts,
    calibration,
    first_fit,
    told,
)
from models.checkpoint import model_digest
from models.config import ModelConfig
from models.decoder import Decoder
from models.pretrain import token_stream
from models.snapshot import Snapshot
from models.variants.check import Source
from models.variants.dense import block_influence, dense_config, dense_student, most_influential
from models.variants.distil import (
    Distillation,
    Distilling,
    Lesson,
    distil,
    lesson_of,
    training_flops,
)
from models.variants.experts import Kept, best, everything
from models.variants.extras import VariantError
from models.variants.parent import Parent
from models.variants.plan import Wanted

_SEED = 0  # of the windows; public, so that the same export gives the same bits
_SNAPSHOT_EVERY = 200
USUAL = Distilling()
_SNAPSHOT = "snapshot.safetensors"


@dataclass(frozen=True)
class Dense:
    """The student that was asked for.

    Attributes:
        width: of its one expert per layer; None for as many of the parent's as a token uses, or
            as fit. depth: layers; None for all.
        settings: of the distillation.

    """

    width: int | None = None
    depth: int | None = None
    settings: Distilling = USUAL

    def check(self, choice: Choice) -> None:
        """Refuse choices that a student leaves no room for.

        Raises:
            VariantError: a number of experts, or merging.

        """
        for option, given in (("--experts", choice.experts), ("--merge", choice.merged)):
            if given:
                raise VariantError(
                    f"Expected --dense without {option}, got both. A dense model has one expert "
                    "per layer: say how wide with --width."
                )


@dataclass(frozen=True)
class Teaching:
    """A distillation that is to be made.

    Attributes:
        layers, joined, criterion: see `models.variants.distil.Distillation`.
        text: that is trained on; lesson: the same in tokens.

    """

    teacher: Decoder
    student: Decoder
    layers: tuple[int, ...]
    joined: int
    criterion: Criterion
    text: PublicText
    lesson: Lesson
    settings: Distilling

    @property
    def tokens(self) -> int:
        """Trained on, in all steps."""
        return self.settings.steps * self.settings.step_tokens

    @property
    def passes(self) -> float:
        """How often the text is read."""
        return self.tokens / len(self.lesson.stream)

    @property
    def flops(self) -> int:
        """See `training_flops`."""
        return training_flops(self.teacher.config, self.student.config, self.tokens)


def select_dense(
    parent: Parent,
    choice: Choice,
    dense: Dense,
    texts: tuple[PublicText, PublicText | None],
    wanted: Wanted,
    *,
    progress: Progress | None = None,
) -> tuple[Selected, Teaching]:
    """Build a student, so that a plan fits; it is not trained yet.

    Args:
        choice: of owners, and of the criterion by which experts are joined.
        texts: to distil on, and to choose experts and layers by (None: the same).

    Raises:
        VariantError: see `Dense.check`, `fitting_plans`, `of_owners`, `lesson_of`; a width or a
            depth that the parent does not have.

    """
    dense.check(choice)
    text, domain = texts[0], texts[1] or texts[0]
    allowed, teacher, _ = allowed_experts(parent, choice)
    config = teacher.config
    _check_length(dense.settings.sequence_length, config)
    depth = config.layers if dense.depth is None else dense.depth
    counts = _counts(dense, config)
    shapes = ((count, dense_config(config, count, depth)) for count in counts)
    joined, plans = first_fit(parent, shapes, wanted, joined=True)
    use = calibration(parent, teacher, domain, progress)
    layers = tuple(range(config.layers))
    if depth != config.layers:
        influence_L = block_influence(teacher, use.rows, told(progress, "watching layers"))
        layers = most_influential(influence_L, depth)
    every = best(everything(config), use.score(choice.criterion), joined)
    chosen = tuple(every[layer] for layer in layers)
    student = dense_student(teacher, layers, chosen, use.use.mass_LE)
    lesson = lesson_of(token_stream(parent.tokenizer, text.texts), dense.settings.sequence_length)
    kept: Kept = tuple(
        tuple(allowed[layer][expert] for expert in experts)
        for layer, experts in zip(layers, chosen, strict=True)
    )
    selected = Selected(
        source=Source(parent.model, student, parent.tokenizer),
        kept=kept,
        inside=allowed,
        chosen_by=_words(choice.criterion, domain, depth < config.layers),
        plans=plans,
    )
    teaching = Teaching(
        teacher, student, layers, joined, choice.criterion, text, lesson, dense.settings
    )
    return selected, teaching


def check_apart(heldout: Iterable[PublicText], public: Iterable[PublicText]) -> None:
    """Refuse to compare a student on text that it is trained on.

    Raises:
        VariantError: a file is in both.

    """
    trained_on = {digest for text in public for digest in text.files.values()}
    for text in heldout:
        if trained_on & set(text.files.values()):
            raise VariantError(
                f"Expected held-out text that the student is not trained on, got a file of "
                f"{text.name!r} in --public too. Keep them apart."
            )


def work_folder(out: Path) -> Path:
    """Where a distillation that was stopped lies until the artefact stands at `out`."""
    return out.with_name(out.name + ".distilling")


def teach(teaching: Teaching, work: Path, progress: Progress) -> Distillation:
    """Train the student in place, from where the same distillation stopped.

    Args:
        work: folder for the snapshot; whoever calls removes it.

    Raises:
        VariantError, SnapshotError: see `distil`.

    """
    digest, settings = model_digest(teaching.teacher), teaching.settings
    work.mkdir(parents=True, exist_ok=True)
    run = _run_text(teaching, digest)
    progress.stage("distilling", settings.steps)
    learnt = distil(
        teaching.teacher,
        teaching.student,
        teaching.lesson,
        settings,
        generator=torch.Generator().manual_seed(_SEED),
        progress=lambda step, kl: progress.step(step, f"KL {kl:.3f} nats per token"),
        snapshot=Snapshot(work / _SNAPSHOT, _SNAPSHOT_EVERY, run),
    )
    before, after = learnt.before, learnt.after
    progress.note(
        f"On {teaching.lesson.heldout_tokens:,} tokens of {teaching.text.name!r} that were held "
        f"out: KL {before.kl:.4f} before, {after.kl:.4f} after; loss {before.loss:.4f} before, "
        f"{after.loss:.4f} after, the teacher's {learnt.teacher_loss:.4f}."
    )
    if after.kl > before.kl:
        progress.note(
            "Training made the student worse on held-out text. Train it for longer, on more text, "
            "or at a lower rate (--distil-steps, --public, --distil-rate)."
        )
    return Distillation(
        teacher=digest,
        layers=teaching.layers,
        joined=teaching.joined,
        criterion=teaching.criterion,
        settings=settings,
        tokens=teaching.tokens,
        heldout_tokens=teaching.lesson.heldout_tokens,
        teacher_loss=learnt.teacher_loss,
        before=learnt.before,
        after=learnt.after,
    )


def _check_length(length: int, config: ModelConfig) -> None:
    if length > config.max_positions:
        raise VariantError(
            f"Expected windows of at most {config.max_positions} tokens, the model's positions, "
            f"got {length}. Lower --distil-length."
        )


def _counts(dense: Dense, config: ModelConfig) -> Iterator[int]:
    """Numbers of experts to join, most first; no more than a token uses unless asked for."""
    width, most = config.expert_hidden_size, config.experts
    if dense.width is None:
        yield from range(config.experts_per_token, 0, -1)
    elif dense.width % width or not 1 <= dense.width // width <= most:
        raise VariantError(
            f"Expected a multiple of the experts' width {width}, up to {most} experts ("
            f"{most * width}), got {dense.width}. Correct --width."
        )
    else:
        yield dense.width // width


def _words(criterion: Criterion, domain: PublicText, shallower: bool) -> str:
    said = f"joined {WORDS[criterion]} on the public text {domain.name!r}"
    return said + ", in the layers that change their input most on it" * shallower


def _run_text(teaching: Teaching, teacher: str) -> str:
    """Name what a snapshot belongs to; the student's weights are those before any training."""
    stream = hashlib.sha256(teaching.lesson.stream.numpy().tobytes()).hexdigest()
    facts = {
        "teacher": teacher,
        "student": model_digest(teaching.student),
        "stream": stream,
        "settings": teaching.settings.model_dump(mode="json"),
    }
    return json.dumps(facts, sort_keys=True)
