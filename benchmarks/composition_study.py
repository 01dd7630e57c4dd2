"""What the composition study trains, and how it measures; everything trained is kept in a folder.

Shapes: M models, N counted targets, V vocabulary, B sequences, T positions.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from arion.progress import make_progress
from benchmarks.composition_data import LENGTH, OWNERS, PUBLIC, Texts, evaluation_rows, streams
from models.checkpoint import load_model, model_digest, save_model
from models.composition import compose
from models.config import preset
from models.decoder import Decoder
from models.durable import write_whole
from models.expert_module import (
    NOT_PRIVATE,
    ExpertModule,
    Facts,
    modules_in,
    read_module,
    write_module,
)
from models.generate import Settings, generate
from models.language_model import IGNORED
from models.owned import owned_tensors
from models.owner_training import OwnerRecipe, train_owner, windows, with_public
from models.pretrain import warm_up
from models.sampling import Sampling
from models.tokenizer import Row, Tokenizer, stack_rows
from models.training_settings import WarmUp

MORE = 4  # experts per token of some arms: twice the base's number
_TUNING_WINDOWS = 352  # of each domain: 45,000 tokens, about as many as a module writes

Losses = dict[str, float]
Logs = dict[str, Tensor]
Rows = Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class Study:
    """One base, one budget; models are read back from `work` where they are there already.

    Attributes:
        base_steps: steps of 16 x 128 tokens that the public model is trained for.
        tuning_steps: steps of router tuning.
        recipe: of every owner's experts; its steps, rate and share of public text are those of
            every other arm too.

    """

    work: Path
    texts: Texts
    base_steps: int
    tuning_steps: int
    recipe: OwnerRecipe

    def claim_folder(self) -> None:
        """Make the work folder this study's; refuse one that was begun with other settings."""
        path = self.work / "settings.json"
        steps = {"base_steps": self.base_steps, "tuning_steps": self.tuning_steps}
        settings = json.dumps({**steps, "recipe": self.recipe.model_dump(mode="json")}, indent=1)
        self.work.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_whole(path, settings.encode())
        if path.read_text() != settings:
            raise SystemExit(f"Expected the settings of {path}, got others. Choose another --work.")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Merges of public text only."""
        public = self.texts.train[PUBLIC]
        return Tokenizer.train([text[:20_000] for text in public], preset("nano").vocab_size)

    @cached_property
    def streams(self) -> Mapping[str, Tensor]:
        """Training tokens of each domain."""
        return streams(self.texts.train, self.tokenizer)

    @cached_property
    def rows(self) -> Rows:
        """Held-out rows of each domain."""
        return evaluation_rows(self.texts.heldout, self.tokenizer)

    @cached_property
    def base(self) -> Decoder:
        """The public model: all weights, public text only."""
        config = preset("nano").model_copy(update={"vocab_size": self.tokenizer.vocab_size})
        generator = torch.Generator().manual_seed(0)
        settings = WarmUp(steps=self.base_steps)
        return self._kept("base", Decoder(config, generator), self.streams[PUBLIC], settings)

    def module(self, owner: str) -> ExpertModule:
        """An owner's experts, trained on its text against the frozen base."""
        return self._module(owner, self.work / "modules", self.recipe)

    def full(self, owner: str) -> Decoder:
        """A copy of the base, all of it trained on one owner's text."""
        copy = compose(self.base, [])
        stream = self._mixed(self.streams[owner])
        return self._kept(f"full-{owner}", copy, stream, self.recipe.training)

    def composed(self, without: str = "", per_token: int | None = None) -> Decoder:
        """The base with every owner's module but one's."""
        modules = [self.module(owner) for owner in OWNERS if owner != without]
        return compose(self.base, modules, per_token)

    def tuned(self, text: str) -> Decoder:
        """The composed model with MORE experts per token, its routers trained on some text.

        "public" is public text; "generated" is what the modules write by themselves, and as much
        public text; "owners" is the owners' own text, which none would share: a bound.
        """
        model = self.composed(per_token=MORE)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".router." in name)
        settings = self.recipe.training.model_copy(update={"steps": self.tuning_steps})
        stream = self.streams[PUBLIC] if text == PUBLIC else self._tuning_text(text)
        return self._kept(f"tuned-{text}", model, stream, settings)

    def _tuning_text(self, text: str) -> Tensor:
        parts = [
            self._generated(owner) if text == "generated" else _sample(self.streams[owner])
            for owner in OWNERS
        ]
        return torch.cat((*parts, _sample(self.streams[PUBLIC])))

    def _generated(self, owner: str) -> Tensor:
        """Text that the base with one owner's module writes from nothing."""
        model = compose(self.base, [self.module(owner)])
        settings = Settings(max_new_tokens=160, sampling=Sampling(temperature=1.0))
        generator, tokens = torch.Generator().manual_seed(5), []
        for _ in range(2):
            written = generate(model, self.tokenizer, [""] * 150, settings, generator)
            tokens.extend(token for each in written for token in each.tokens)
        return torch.tensor(tokens, dtype=torch.int32)

    def pooled(self) -> Decoder:
        """The composed shape before any owner trained, all of it trained on all owners' text."""
        none = self.recipe.training.model_copy(update={"steps": 0})
        recipe = self.recipe.model_copy(update={"training": none})
        fresh = [self._module(owner, self.work / "untrained", recipe) for owner in OWNERS]
        least = min(len(self.streams[owner]) for owner in OWNERS)
        pool = torch.cat([self.streams[owner][:least] for owner in OWNERS])
        steps = len(OWNERS) * self.recipe.training.steps
        settings = self.recipe.training.model_copy(update={"steps": steps})
        return self._kept("pooled", compose(self.base, fresh), self._mixed(pool), settings)

    def _mixed(self, stream: Tensor) -> Tensor:
        return with_public(stream, self.streams[PUBLIC], self.recipe.public_share)

    def _module(self, owner: str, folder: Path, recipe: OwnerRecipe) -> ExpertModule:
        digest = model_digest(self.base)
        kept = [weights for weights in modules_in(folder) if weights.parent.name == owner]
        if not kept:
            model = compose(self.base, [])
            train_owner(
                model,
                self.streams[owner],
                self.streams[PUBLIC],
                recipe,
                generator=torch.Generator().manual_seed(1),
                progress=told(owner, recipe.training),
            )
            facts = Facts(
                owner=owner,
                data=f"The {owner} training text of this study.",
                licence="As the text.",
                privacy=NOT_PRIVATE,
                base_digest=digest,
                sources=recipe.sources,
                recipe=recipe.model_dump(mode="json"),
            )
            kept = [write_module(folder, owned_tensors(model), facts)]
        return read_module(kept[0], self.base.config, digest)

    def _kept(self, name: str, model: Decoder, stream: Tensor, settings: WarmUp) -> Decoder:
        """Train what is trainable of a model and keep it, or read back what was kept."""
        folder = self.work / name
        if not folder.exists():
            generator = torch.Generator().manual_seed(2)
            warm_up(model, stream, settings, generator, told(name, settings))
            save_model(model, self.tokenizer, folder)
        return load_model(folder)[0]


def _sample(stream: Tensor) -> Tensor:
    """Windows spread at random over a stream, one after the other."""
    generator = torch.Generator().manual_seed(4)
    return windows(stream, _TUNING_WINDOWS, LENGTH, generator).flatten().int()


def told(name: str, settings: WarmUp) -> Callable[[int, float], None]:
    """Progress of one training."""
    progress = make_progress()
    progress.stage(name, settings.steps)

    def tell(step: int, loss: float) -> None:
        progress.step(step, f"loss {loss:.3f}")
        if step == settings.steps:
            progress.close()

    return tell


@torch.no_grad()
def target_logs(model: Decoder, rows: Rows) -> Logs:
    """Log-probability of every counted target of each domain, in nats, [N] each."""
    logs = {}
    for domain, there in rows.items():
        found = []
        for begin in range(0, len(there), 40):
            token_BT, target_BT = stack_rows(there[begin : begin + 40], LENGTH)
            log_BTV = model(token_BT).log_softmax(-1)
            log_BT = log_BTV.gather(-1, target_BT.clamp(min=0)[..., None]).squeeze(-1)
            found.append(log_BT[target_BT != IGNORED])
        logs[domain] = torch.cat(found)
    return logs


def mean_output_losses(models: Sequence[Logs]) -> Losses:
    """Nats per token of the mean of the models' probabilities, by domain."""
    averaged = {}
    for domain in models[0]:
        log_MN = torch.stack([logs[domain] for logs in models])
        log_N = log_MN.logsumexp(0) - torch.tensor(float(len(models))).log()
        averaged[domain] = -float(log_N.mean())
    return averaged


def weight_average(models: Sequence[Decoder]) -> Decoder:
    """One model whose weights are the means of the models'."""
    states = [model.state_dict() for model in models]
    average = Decoder(models[0].config)
    average.load_state_dict({n: torch.stack([s[n] for s in states]).mean(0) for n in states[0]})
    return average
