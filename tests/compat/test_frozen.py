"""What earlier versions send and left on disks is read as they meant it.

`messages.json` and `records.json` hold bytes and what was understood when they were written. A
change of a format shows here: have the old form read, and add the new one
(`python -m tests.compat.freeze`), or say in CHANGELOG that there is no way back.
"""

import importlib
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel

import arion
import client
import client.app
import coordinator
import models
import privacy
import protos
from privacy.ledger.entries import KINDS
from protos.arion.v1 import service_pb2
from tests.compat.freeze import MESSAGES, RECORDS
from tests.compat.reading import kinds_of_messages, models_in, plain, read

Frozen = dict[str, Any]
FROZEN: Frozen = json.loads(MESSAGES.read_text()) | json.loads(RECORDS.read_text())
ACTIONS = {
    "query.close", "query.countersign", "query.head", "query.keys", "query.recall",
    "query.reveals", "query.roster", "query.survivors", "query.unmask", "train.upload",
}  # fmt: skip
METHODS = {
    "Artefacts.List(ListRequest) -> ListReply",
    "Artefacts.Pull(PullRequest) -> stream Chunk",
    "Audit.Ledgers(LedgersRequest) -> stream Chunk",
    "Enrolment.Collect(CollectRequest) -> CollectReply",
    "Enrolment.Hello(HelloRequest) -> HelloReply",
    "Enrolment.Join(JoinRequest) -> JoinReply",
    "Exchange.Answer(stream AnswerPart) -> AnswerReply",
    "Exchange.Fetch(FetchRequest) -> stream Chunk",
    "Exchange.Listen(ListenRequest) -> stream Envelope",
    "Exchange.Members(MembersRequest) -> MembersReply",
    "Exchange.Progress(ProgressRequest) -> ProgressReply",
    "Exchange.Renew(RenewRequest) -> RenewReply",
}
NOT_SHOWN = {
    "arion.public_text._Declaration": "public.toml, written by people beside public text",
    "arion.run_file.CompareSection": "of a run file",
    "arion.run_file.DataSection": "of a run file",
    "arion.run_file.FederationSection": "of a run file",
    "arion.run_file.ModelSection": "of a run file",
    "arion.run_file.PrivacySection": "of a run file",
    "arion.run_file.RunFile": "written by people for one version",
    "arion.run_file.ServiceSection": "of a run file",
    "arion.run_file.TrainingSection": "of a run file",
    "arion.run_file._Section": "a base",
    "arion.synthetic_grammar.Grammar": "comes with the package",
    "arion.synthetic_grammar.PrivateGrammar": "comes with the package",
    "client.experts_order.ExpertsOrder": "words of a command line",
    "client.unit_keys._Bound": "read within unit-keys.jsonl",
    "client.unit_keys._First": "read within unit-keys.jsonl",
    "client.unit_keys._Line": "a base",
    "models.config.ModelConfig": "in config.json as transformers writes it (tests/models)",
    "models.config.RopeScaling": "in config.json as transformers writes it (tests/models)",
    "models.expert_module.Facts": "a base",
    "models.owner_training.OwnerRecipe": "words of a command line",
    "models.training_settings.WarmUp": "of a run file",
    "models.variants.frozen.Frozen": "a base",
    "privacy.attestation._Envelope": "read within an attestation",
    "privacy.attestation._Frozen": "a base",
    "privacy.attestation._Signature": "read within an attestation",
    "privacy.attestation._Statement": "read within an attestation",
    "privacy.attestation._Subject": "read within an attestation",
    "privacy.ledger.entries.Basis": "a base",
    "privacy.ledger.entries.Body": "a base",
    "privacy.ledger.entries.Entry": "read within every entry",
    "privacy.secagg.keys.Statement": "a base",
    "privacy.secagg.reveals._Kept": "read within a node's own reveal",
}
"""Models of the product that no frozen record shows, and why."""


def bytes_of(name: str) -> bytes:
    found = FROZEN[name]
    return found["text"].encode() if "text" in found else bytes.fromhex(found["hex"])


def lacks(found: Any, frozen: Any, place: str = "") -> Iterator[str]:
    """Where something that was understood is not, or otherwise; more may be there."""
    if isinstance(frozen, dict) and isinstance(found, dict):
        for key, value in frozen.items():
            yield from lacks(found.get(key, "nothing"), value, f"{place}.{key}")
    elif isinstance(frozen, list) and isinstance(found, list) and len(frozen) == len(found):
        for number, (new, old) in enumerate(zip(found, frozen, strict=True)):
            yield from lacks(new, old, f"{place}[{number}]")
    elif found != frozen:
        yield f"{place}: {frozen!r} was understood, and now {found!r}"


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_bytes_are_read_as_they_were(name: str, tmp_path: Path) -> None:
    found = plain(read(name, bytes_of(name), tmp_path))
    assert list(lacks(found, FROZEN[name]["reads"])) == []


def test_every_kind_of_message_and_entry_is_frozen() -> None:
    exchange = {f"exchange {name}" for name in service_pb2.DESCRIPTOR.message_types_by_name}
    entries = {f"entry {kind}" for kind in KINDS}
    assert kinds_of_messages().keys() | exchange | entries <= FROZEN.keys()


def test_calls_and_questions_keep_their_names() -> None:
    """One that is new is added here; one that goes is missed by nodes or coordinators in use."""
    assert methods() == METHODS
    assert client.app.ACTIONS == client.app.app._registered_funcs.keys() == ACTIONS


def test_every_model_of_a_record_is_frozen(tmp_path: Path) -> None:
    """A new model of something that is kept needs an example, or a reason here."""
    for package in (arion, client, coordinator, models, privacy, protos):
        _import_all(package)
    shown = {
        f"{kind.__module__}.{kind.__qualname__}"
        for name in FROZEN
        for kind in models_in(read(name, bytes_of(name), tmp_path))
    }
    found = {
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in _below(BaseModel)
        if kind.__module__.split(".")[0] in ("arion", "client", "coordinator", "models", "privacy")
    }
    assert found - shown - NOT_SHOWN.keys() == set(), "freeze an example of these"
    assert NOT_SHOWN.keys() - (found - shown) == set(), "these are shown, or gone"


def methods() -> set[str]:
    found = set()
    for service in service_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            came = "stream " * method.client_streaming + method.input_type.name
            goes = "stream " * method.server_streaming + method.output_type.name
            found.add(f"{service.name}.{method.name}({came}) -> {goes}")
    return found


def _import_all(package: ModuleType) -> None:
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if "__main__" not in module.name and ".migrations" not in module.name:
            importlib.import_module(module.name)


def _below(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)
