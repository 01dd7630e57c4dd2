"""What a node trains with: a recipe's model and the institution's units, read once and kept.

Several processes that torchrun started share the work: rank 0 is the node, and alone sees plans,
keys and noise. The others (`serve`) are told a recipe, read model and units as rank 0 does, and
then which units to process.
"""

from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from client.compute import place
from client.config import NodeConfig, NodeError, load_node_config
from client.plans import parse_recipe, refuse_plan
from client.sharded_training import ShardedTrainer
from client.training import LocalTrainer, UnitRows, unit_rows
from client.training_records import training_records
from client.unit_keys import UnitKeys, open_unit_keys
from models.decoder import Decoder
from models.folders import open_model
from models.language_model import LanguageModel
from models.parallel import ALONE, World
from models.recipe import prepare
from models.tokenizer import Tokenizer
from models.training_settings import Recipe
from models.vector import read_vector, vector_of, write_vector
from privacy.canonical import sha256_hex
from privacy.consent import Consent
from privacy.rounds import PlanCode
from privacy.units import INSTITUTION


@dataclass(frozen=True)
class Seat:
    """A recipe's place of work.

    Attributes:
        model: whole, which plans are held against.
        trainer: of the same weights once `take_up` was called.

    """

    model: LanguageModel
    trainer: LocalTrainer

    def write(self, vector: memoryview) -> None:
        """Set the trainable parameters of the whole model, fp32 bytes."""
        write_vector(self.model, vector_of(vector))

    def take_up(self) -> None:
        """Give the trainer the whole model's parameters, where it has a copy of its own."""
        if isinstance(self.trainer, ShardedTrainer):
            self.trainer.set_vector(read_vector(self.model))


class Seats:
    """The seat of the newest recipe, at rank 0.

    Args:
        config, consent: of the node.
        world: this process, or those that torchrun started.
        shares: take turns at one model with other nodes of this process that start from the same
            folder. Each sets it to the round's parameters before its turn; none may train while
            another one does.

    Raises:
        NodeError: settings that several processes do not go with.

    """

    def __init__(
        self, config: NodeConfig, consent: Consent, world: World = ALONE, *, shares: bool = False
    ) -> None:
        check_processes(config, world)
        self._config, self._consent, self._world = config, consent, world
        self._shares = shares
        self._opened: _Opened | None = None
        self._newest: tuple[str, Seat] | None = None

    def of(self, recipe_json: bytes, unit_keys: UnitKeys | None) -> Seat:
        """Return the seat of a recipe.

        Args:
            recipe_json: the recipe's canonical bytes.
            unit_keys: by which data sets are kept apart; None uses all records.

        Raises:
            PlanRefused: a recipe that is none, or does not fit the node's model.

        """
        digest = sha256_hex(recipe_json)
        if self._newest is None or self._newest[0] != digest:
            self._leave()
            self._newest = digest, self._open(recipe_json, unit_keys)
        return self._newest[1]

    def close(self) -> None:
        """Let the other processes end."""
        self._leave()
        if self._world.size > 1:
            self._world.from_first()

    def _leave(self) -> None:
        if self._newest and isinstance(self._newest[1].trainer, ShardedTrainer):
            self._newest[1].trainer.close()
        self._newest = self._opened = None

    def _open(self, recipe_json: bytes, unit_keys: UnitKeys | None) -> Seat:
        recipe = parse_recipe(recipe_json)
        self._opened = self._model(recipe_json)
        model, tokenizer = self._opened.model, self._opened.tokenizer
        units = _units(self._config, self._consent, unit_keys, tokenizer, recipe)
        if self._world.size == 1:
            trainer = LocalTrainer(
                model,
                units,
                recipe,
                chunk_sequences=self._config.chunk_sequences,
                two_passes=self._config.two_passes,
                pad_draws=self._config.pad_draws,
            )
            return Seat(model, trainer)
        self._world.from_first(recipe_json)  # from here on the others do the same
        return Seat(model, _share(self._config, recipe, units, self._world))

    def _model(self, recipe_json: bytes) -> "_Opened":
        """Read the model, or find it with a node that shares it."""
        config = self._config
        key = (config.base_model, recipe_json, config.device, config.precision)
        found = _SHARED.get(key) if self._shares else None
        if found is None:
            model, tokenizer = _open_model(config, parse_recipe(recipe_json))
            place(model, config)
            found = _Opened(model, tokenizer)
        if self._shares:
            _SHARED[key] = found
        return found


@dataclass(frozen=True)
class _Opened:
    """A base model, prepared by a recipe and placed, and its tokenizer."""

    model: LanguageModel
    tokenizer: Tokenizer


_SHARED: WeakValueDictionary[tuple[Path, bytes, str, str], _Opened] = WeakValueDictionary()
"""Models that nodes of this process share, by all that decides them, while one node holds them."""


def serve(home: Path, consent: Consent, world: World) -> None:
    """Work for the node at rank 0 until it closes: what every other rank does.

    Args:
        home: of the node.
        consent: of the node; says which units there are.
        world: the processes.

    Raises:
        NodeError: settings that several processes do not go with.
        ParallelError: the processes do not hold the same, or another one failed.

    """
    config = load_node_config(home)
    check_processes(config, world)
    while recipe_json := world.from_first():
        recipe = parse_recipe(recipe_json)
        keys = open_unit_keys(home, consent, config.fields.unit_field)
        _, tokenizer = open_model(config.base_model)
        units = _units(config, consent, keys, tokenizer, recipe)
        _share(config, recipe, units, world).serve()


def check_processes(config: NodeConfig, world: World) -> None:
    """Refuse settings that several processes do not go with; NodeError."""
    if world.size > 1 and (config.two_passes or config.precision != "fp32"):
        raise NodeError(
            'Expected two_passes = false and precision = "fp32" for several processes, got others: '
            "they were not tried together. Change node.toml, or start one process."
        )


def _open_model(config: NodeConfig, recipe: Recipe) -> tuple[LanguageModel, Tokenizer]:
    model, tokenizer = open_model(config.base_model)
    try:
        prepare(model, recipe)
    except ValueError:
        refuse_plan(PlanCode.WRONG_RECIPE, "", "a recipe that fits this node's model, got another")
    return model, tokenizer


def _units(
    config: NodeConfig,
    consent: Consent,
    keys: UnitKeys | None,
    tokenizer: Tokenizer,
    recipe: Recipe,
) -> UnitRows:
    records = training_records(config)
    if keys is not None:
        records = keys.own(consent.data_set, records)
    units = unit_rows(records, tokenizer, recipe)
    return units.as_one() if consent.unit == INSTITUTION else units


def _share(config: NodeConfig, recipe: Recipe, units: UnitRows, world: World) -> ShardedTrainer:
    model, _ = _open_model(config, recipe)
    if not isinstance(model, Decoder):
        raise NodeError(
            "Expected a model of the family for several processes, got another class, which is "
            "not sharded. Start one process."
        )
    model.to(world.device)
    return ShardedTrainer(
        model,
        units,
        recipe,
        world,
        chunk_sequences=config.chunk_sequences,
        pad_draws=config.pad_draws,
    )
