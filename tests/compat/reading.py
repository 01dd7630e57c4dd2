"""Read frozen bytes by what the product reads them with, and say plainly what was understood."""

import dataclasses
import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict
from pydantic import BaseModel
from torch import Tensor

from arion.audit_secrets import PlantedSecret
from arion.receipt import Receipt
from arion.withdrawal_before import Before
from client.config import load_node_config
from client.membership import MembershipFile
from client.outbox import Outbox
from client.unit_keys import UNIT_KEYS_FILE, UnitKeys
from coordinator.attempts import read_attempts
from coordinator.epoch_record import EpochRecord
from coordinator.service.archive import Manifest as BackupManifest
from coordinator.service.home import ServiceSettings
from coordinator.settings import RunSettings
from models.composition import Ownership
from models.effort.verifier import Card as VerifierCard
from models.expert_module import Card
from models.modular import Manifest
from models.optimiser import OptimiserState
from models.variants.index import Index
from models.variants.passport import Passport
from privacy.attestation import verify_attestation
from privacy.consent import load_consent
from privacy.experts_job import ExpertsJob
from privacy.identity import IdentityKey
from privacy.ledger.entries import parse_entry
from privacy.ledger.head import Countersignature, TreeHead, parse_signed_line, parse_statement
from privacy.ledger.pins import load_pins
from privacy.round_plan import RoundPlan
from privacy.secagg.header import Header
from privacy.secagg.keys import KeyBundle
from privacy.secagg.reveals import OwnReveal, Reveal
from privacy.secagg.store import SqliteRoundStore
from protos import epoch_messages, messages, round_messages  # noqa: F401  (they define kinds)
from protos.arion.v1 import service_pb2
from protos.wire import WireMessage

_Statement = TypeVar("_Statement", KeyBundle, Reveal, Header, TreeHead, Countersignature)
_DIGEST_OF_PLAN = "01" * 32
_EXCHANGE = "exchange "
_ENTRY = "entry "


def kinds_of_messages() -> dict[str, type[WireMessage]]:
    """Every message that a run may send, by name."""
    return {kind.__name__: kind for kind in _below(WireMessage) if hasattr(kind, "wire")}


def read(name: str, data: bytes, folder: Path) -> object:
    """Read bytes as the product does; a file is put into the folder for that."""
    name = name.rstrip("'")
    if name in kinds_of_messages():
        return kinds_of_messages()[name].from_bytes(data)
    if name.startswith(_EXCHANGE):
        return _read_exchange(getattr(service_pb2, name.removeprefix(_EXCHANGE)), data)
    if name.startswith(_ENTRY):
        return _entry(data)
    if name in _STATEMENTS:
        return _STATEMENTS[name](data)
    return _FILES[name](data, folder)


def plain(value: object) -> Any:
    """What was understood, as JSON."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, bytes | memoryview):
        return value.hex()
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Enum | Path):
        return str(value)
    return value


def models_in(value: object) -> Iterator[type[BaseModel]]:
    """The models that a value is made of."""
    if isinstance(value, BaseModel):
        yield type(value)
        for name in type(value).model_fields:
            yield from models_in(getattr(value, name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from models_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from models_in(each)


def _below(kind: type[Any]) -> Iterator[type[Any]]:
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)


def _read_exchange(kind: Any, data: bytes) -> Any:
    read = kind.FromString(data)
    read.DiscardUnknownFields()
    assert read.SerializeToString(deterministic=True) == data
    return MessageToDict(read, preserving_proto_field_name=True)


def _entry(line: bytes) -> object:
    entry = parse_entry(line)
    assert entry.payload() == line
    return {"index": entry.index, "kind": entry.kind, "body": entry.parsed()}


def _same(kind: type[_Statement]) -> Callable[[bytes], _Statement]:
    """Digests are taken of what was read and written again, so that must be the same bytes."""

    def read(data: bytes) -> _Statement:
        found = kind.model_validate_json(data)
        assert found.payload() == data
        return found

    return read


_STATEMENTS: dict[str, Callable[[bytes], object]] = {
    "round-plan": lambda data: {
        "plan": RoundPlan.from_payload(data), "digest": RoundPlan.from_payload(data).digest(),
    },
    "key-bundle": _same(KeyBundle),
    "key-bundle.hybrid": _same(KeyBundle),
    "reveal": _same(Reveal),
    "reveal.hybrid": _same(Reveal),
    "own-reveal.hybrid": OwnReveal.from_bytes,
    "header": _same(Header),
    "tree-head": lambda data: parse_statement(data, TreeHead),
    "countersignature": lambda data: parse_statement(data, Countersignature),
}  # fmt: skip


def _put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _consent(data: bytes, folder: Path) -> object:
    consent = load_consent(_put(folder, "consent.toml", data))
    return {"consent": consent, "digest": consent.digest()}


def _node(data: bytes, folder: Path) -> object:
    config = load_node_config(_put(folder, "node.toml", data).parent)
    places = {"data": Path(config.data.name), "base_model": Path(config.base_model.name)}
    return config.model_copy(update=places)


def _membership(data: bytes, folder: Path) -> object:
    return MembershipFile(_put(folder, "membership.json", data).parent).load()


def _unit_keys(data: bytes, folder: Path) -> object:
    found = UnitKeys(_put(folder, UNIT_KEYS_FILE, data), "person")
    elsewhere = found.elsewhere("letters", ("p-1", "p-2", "p-3"))
    return {"state": found.state(b"label"), "of another data set": elsewhere}


def _outbox(data: bytes, folder: Path) -> object:
    _put(folder, f"outbox/{_DIGEST_OF_PLAN}.sealed", data)
    debited = hashlib.sha256(data).hexdigest()  # as version 2 of the exchange did
    return Outbox(folder / "outbox").load(bytes.fromhex(_DIGEST_OF_PLAN), debited)


def _database(data: bytes, path: Path) -> Path:
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    connection.executescript(data.decode())
    connection.close()
    return path


def _node_rounds(data: bytes, folder: Path) -> object:
    path = _database(data, folder / "read.sqlite")
    plan = bytes(sqlite3.connect(path).execute("SELECT digest FROM plans").fetchone()[0])
    store = SqliteRoundStore(path)
    found = {
        "last": store.last_seen("clinics", "third"), "claimed": store.is_claimed(plan),
        "set": store.signed_set(plan), "reply": store.unmask_reply(plan),
    }  # fmt: skip
    store.close()
    return found


def _attempts(data: bytes, folder: Path) -> object:
    _database(data, folder / "rounds.sqlite")
    return read_attempts(folder)


def _settings(data: bytes, _: Path) -> object:
    settings = RunSettings.model_validate_json(data)
    return {"settings": settings, "recipe": settings.recipe_json().decode()}


def _backup(data: bytes, _: Path) -> object:
    manifest = BackupManifest.model_validate_json(data)
    assert manifest.payload() == data
    return manifest


def _job(data: bytes, _: Path) -> object:
    job = ExpertsJob.model_validate_json(data)
    return {"job": job, "digest": job.digest()}


def _attestation(data: bytes, _: Path) -> object:
    return verify_attestation(data, "https://example.org/variant/v1")


def _json(kind: type[BaseModel]) -> Callable[[bytes, Path], object]:
    return lambda data, _: kind.model_validate_json(data)


_FILES: dict[str, Callable[[bytes, Path], object]] = {
    "consent.toml": _consent,
    "node.toml": _node,
    "membership.json": _membership,
    UNIT_KEYS_FILE: _unit_keys,
    "outbox": _outbox,
    "node rounds.sqlite": _node_rounds,
    "coordinator.witness.json": lambda data, _: parse_signed_line(data.removesuffix(b"\n")),
    "identity.key": lambda data, _: {"public": IdentityKey.from_bytes(data).public_key},
    "run.json": _settings,
    "run rounds.sqlite": _attempts,
    "state": lambda data, _: OptimiserState.from_bytes(data),
    "plans.jsonl": lambda data, _: parse_signed_line(data.removesuffix(b"\n")),
    "epoch.json": lambda data, _: EpochRecord.from_bytes(data),
    "service.json": _json(ServiceSettings),
    "pins.json": lambda data, folder: load_pins(_put(folder, "pins.json", data)),
    "backup manifest": _backup,
    "experts job": _job,
    "module card": _json(Card),
    "modular.json": _json(Manifest),
    "experts.json": _json(Ownership),
    "verifier.json": _json(VerifierCard),
    "variant.json": _json(Passport),
    "variant.json.unverified": _json(Passport),
    "registry.json": _json(Index),
    "receipt": _json(Receipt),
    "withdrawal journal": _json(Before),
    "planted secret": _json(PlantedSecret),
    "attestation": _attestation,
}
