"""Frozen transcripts: the product and a second implementation give the same bytes.

`vectors.json` holds fixed keys, nonces, seeds and coefficients, and every value that follows. Both
implementations compute all of it anew. To freeze others, write what
`reference_attempt.transcript` returns.
"""

import ast
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from privacy.identity import IdentityKey, Signed
from privacy.round_plan import RoundPlan, sign_plan
from privacy.secagg import reveals as reveals_module
from privacy.secagg import shamir
from privacy.secagg.coordinator import StreamingSum
from privacy.secagg.graph import Group, Shape, attempt_seed, draw_groups
from privacy.secagg.header import verify_header
from privacy.secagg.keys import EpochKeys
from privacy.secagg.masks import word_type
from privacy.secagg.node import SecAggNode
from privacy.secagg.packing import pack, unpack
from privacy.secagg.pairwise import PairwiseKeys
from privacy.secagg.reveals import accept_reveals, reveal
from privacy.secagg.roster import Roster, accept_roster
from protos.messages import Upload
from tests.secagg import reference, reference_attempt
from tests.secagg.conftest import MemoryStore

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())
Json = dict[str, Any]
transcripts = pytest.mark.parametrize(
    "vector", VECTORS["transcripts"], ids=[each["title"] for each in VECTORS["transcripts"]]
)
graphs = pytest.mark.parametrize("vector", VECTORS["graphs"], ids=["one group", "two groups"])


@transcripts
def test_the_second_implementation_gives_the_frozen_values(vector: Json) -> None:
    assert reference_attempt.transcript(vector["given"]) == vector["expected"]


@transcripts
def test_the_product_gives_the_frozen_values(vector: Json, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Product(vector["given"], monkeypatch).transcript()
    for name, expected in vector["expected"].items():
        assert found[name] == expected, name
    assert found.keys() == vector["expected"].keys()


@transcripts
def test_the_sums_are_those_of_the_survivors_words(vector: Json) -> None:
    uploads = vector["given"]["uploads"]
    ring_bits = json.loads(vector["given"]["plan"])["step"]["ring_bits"]
    for each in vector["expected"]["sums"]:
        columns = zip(*(uploads[u]["words"] for u in each["survivors"]), strict=True)
        assert each["sum"] == [sum(column) % 2**ring_bits for column in columns]


@graphs
def test_graphs(vector: Json) -> None:
    given = {name: value for name, value in vector.items() if name != "expected"}
    seed = bytes.fromhex(given.pop("graph_seed"))
    place = given.pop("round"), given.pop("attempt")
    shape = Shape(given["groups"], given["degree"], given["committee"])
    product = attempt_seed(seed, *place)
    assert product.hex() == vector["expected"]["seed"]
    drawn = draw_groups(product, tuple(given["names"]), shape)
    assert [as_json(group) for group in drawn] == vector["expected"]["groups"]
    again = reference.attempt_seed(seed, *place)
    assert {"seed": again.hex(), "groups": reference.draw(again, **given)} == vector["expected"]


@pytest.mark.parametrize("module", [reference, reference_attempt], ids=["first", "second"])
def test_the_second_implementation_imports_nothing_of_the_product(module: Any) -> None:
    tree = list(ast.walk(ast.parse(Path(module.__file__).read_text())))
    froms = [node.module or "" for node in tree if isinstance(node, ast.ImportFrom)]
    plain = [x.name for node in tree if isinstance(node, ast.Import) for x in node.names]
    foreign = {name for name in froms + plain if name not in sys.stdlib_module_names}
    ours = {name for name in foreign if not name.startswith(("cryptography.", "blake3"))}
    assert ours <= {"tests.secagg.reference"}


def as_json(group: Group) -> Json:
    return {
        "members": list(group.members),
        "committee": list(group.committee),
        "neighbours": {u: sorted(group.neighbours[u]) for u in group.members},
    }


def signed(value: Signed) -> Json:
    return {"payload": value.payload.decode(), "signature": value.signature.hex()}


def queue(values: list[str]) -> Callable[[int], int]:
    """`secrets.randbelow` that draws what the vectors say, and nothing else."""
    drawn = iter(values)

    def randbelow(limit: int) -> int:
        assert limit == 2**256 - 189
        return int(next(drawn), 16)

    return randbelow


class Product:
    """The product's members and coordinators, with the randomness of a vector."""

    def __init__(self, given: Json, patch: pytest.MonkeyPatch) -> None:
        self.given, self.patch, self.names = given, patch, sorted(given["members"])
        members = given["members"]
        self.identities = {
            u: IdentityKey.from_bytes(bytes.fromhex(members[u]["identity"])) for u in self.names
        }
        self.keys = {
            u: EpochKeys.from_bytes(
                bytes.fromhex("".join(members[u][x] for x in ("mask", "packet", "nonce", "kem")))
            )
            for u in self.names
        }
        self.bundles = {
            u: self.keys[u].bundle(
                given["federation"], given["epoch"], u, self.identities[u],
                hybrid=bool(given["ciphertexts"]),
            )
            for u in self.names
        }  # fmt: skip
        self.reveals = {u: self.reveal(u) for u in self.names}
        self.nodes = {u: self.enter(u) for u in self.names}
        self.roster, _ = accept_reveals(self.accepted(None), self.shown(), None)
        self.plan = RoundPlan.from_payload(given["plan"].encode())

    def accepted(self, own: str | None) -> Roster:
        pins = {u: key.public_key for u, key in self.identities.items()}
        bundles = list(self.bundles.values())
        named = self.given["epoch"], self.given["federation"]
        return accept_roster(bundles, pins, self.bundles[own] if own else None, *named)

    def reveal(self, u: str) -> Any:
        """Ciphertexts are frozen: what ML-KEM draws for them cannot be injected."""
        sealed = iter(sorted(self.given["ciphertexts"].get(u, {}).items()))

        def encapsulate(_: bytes) -> tuple[bytes, bytes]:
            v, ciphertext = next(sealed)
            return self.keys[v].decapsulate(bytes.fromhex(ciphertext)), bytes.fromhex(ciphertext)

        self.patch.setattr(reveals_module, "encapsulate", encapsulate)
        return reveal(self.accepted(u), self.keys[u], self.identities[u])

    def shown(self) -> list[Signed]:
        return [each.signed for each in self.reveals.values()]

    def enter(self, u: str) -> SecAggNode:
        roster, received = accept_reveals(self.accepted(u), self.shown(), self.reveals[u].signed)
        secrets = {v: self.keys[u].decapsulate(sealed) for v, sealed in received.items()}
        pairwise = PairwiseKeys(self.keys[u], roster, {**self.reveals[u].kem_secrets, **secrets})
        return SecAggNode(self.identities[u], pairwise, MemoryStore())

    def upload(self, u: str) -> tuple[Upload, Any]:
        given = self.given["uploads"][u]
        drawn = [given["own_seed"]]  # the product draws coefficients from the highest power down
        drawn += [each for secret in given["coefficients"] for each in reversed(secret)]
        words = np.array(given["words"], word_type(self.plan.step.ring_bits))
        with self.patch.context() as drawing:
            drawing.setattr(shamir, "secrets", SimpleNamespace(randbelow=queue(drawn)))
            return self.nodes[u].seal_upload(words, self.plan), words

    def transcript(self) -> Json:
        coordinator = IdentityKey.from_bytes(bytes.fromhex(self.given["coordinator"]))
        uploads: Json = {}
        sums = [self.sum(place, uploads) for place in range(self.plan.groups)]
        return {
            "bundles": {u: signed(bundle) for u, bundle in self.bundles.items()},
            "roster": self.roster.digest.hex(),
            "reveals": {u: signed(each.signed) for u, each in self.reveals.items()},
            "graph_seed": self.roster.graph_seed.hex(),
            "plan": {
                "digest": self.plan.digest().hex(),
                "signature": sign_plan(coordinator, self.plan).signature.hex(),
            },
            "seed": attempt_seed(
                self.roster.graph_seed, self.plan.round, self.plan.attempt
            ).hex(),
            "groups": [as_json(group) for group in self.roster.groups(self.plan)],
            "pairs": self.pairs(),
            "uploads": uploads,
            "sums": sums,
        }  # fmt: skip

    def pairs(self) -> Json:
        """Each pair's secrets, on which both of its ends agree."""
        found: Json = {}
        for group in self.roster.groups(self.plan):
            for u in group.members:
                for v in group.neighbours[u]:
                    pairwise = self.nodes[u].pairwise
                    seed = shamir.reduce_to_field(pairwise.round_seed(v, self.plan.digest()))
                    kinds = {k: pairwise.prk(k, v).hex() for k in ("mask", "packet")}  # type: ignore[arg-type]
                    entry = {**kinds, "seed": seed.hex()}
                    assert found.setdefault(" ".join(sorted((u, v))), entry) == entry
        return found

    def sum(self, place: int, uploads: Json) -> Json:
        total, ring_bits = StreamingSum(self.plan, self.roster, place), self.plan.step.ring_bits
        for u in total.group.members:
            if u in self.given["uploads"]:
                upload, words = self.upload(u)
                packed = bytes(pack(words.copy(), ring_bits))
                total.add(upload, unpack(packed, ring_bits, self.plan.vector_length))
                uploads[u] = self.described(upload, packed)
        headers = total.close().headers
        signatures = total.certify(
            self.nodes[r].sign_survivors(self.plan, headers) for r in total.committee
        )
        replies = {
            r: self.nodes[r].unmask(self.plan, total.unmask_request(r)) for r in total.committee
        }
        return {
            "survivors": list(total.uploaded),
            "digest": signatures[0].set_digest.hex(),
            "signatures": {each.node: each.signature.hex() for each in signatures},
            "replies": {r: reply.to_bytes().hex() for r, reply in replies.items()},
            "sum": total.open_sum(replies.values()).words.tolist(),
        }

    def described(self, upload: Upload, packed: bytes) -> Json:
        header = verify_header(upload.header, self.plan.digest(), self.roster)
        return {
            "masked": packed.hex(),
            "own_commitment": upload.own_commitment.hex(),
            "edge_commitments": {x.peer: x.commitment.hex() for x in upload.edge_commitments},
            "upload_digest": header.upload_digest().hex(),
            "packets": {x.node: x.sealed.hex() for x in upload.packets},
            "header": signed(upload.header),
            "message": hashlib.sha256(upload.to_bytes()).hexdigest(),
        }
