"""Malformed messages on every call: each ends with a code, nothing is written, others are served.

A fuzzer with a fixed seed alters well-formed messages (bits, lengths, pieces of others) or makes
bytes up. 300 messages a call in the default tests, 10,000 in the nightly ones.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import select

from client.transport import Credentials
from coordinator.service.database import INVITATIONS, MEMBERS, MESSAGES, REPLIES
from privacy.enrolment import PROTOCOL, new_connection_key, signing_request
from protos.arion.v1 import service_pb2 as pb
from tests.service.attacker import PAYLOAD, Attacker, attack, head
from tests.service.members import channel_of

__all__ = ["attack"]  # a fixture

FREE = {"calls_per_s": 1e9, "joins_per_s": 1e9, "transfers": 64, "idle_s": 2.0}
ANSWERED = "ok"


class Fuzzer:
    """Alters messages."""

    def __init__(self, seed: int, whole: list[bytes]) -> None:
        self._random, self._whole = random.Random(seed), whole

    def message(self) -> bytes:
        alter = self._random.choice(
            [self._flipped, self._cut, self._spliced, self._lengthened, self._made_up]
        )
        return alter(self._random.choice(self._whole))

    def messages(self) -> list[bytes]:
        """For a stream: some of them whole."""
        count = self._random.randint(0, 4)
        pick = self._random.random
        whole = self._random.choice
        return [self.message() if pick() < 0.7 else whole(self._whole) for _ in range(count)]

    def _flipped(self, data: bytes) -> bytes:
        altered = bytearray(data)
        for _ in range(self._random.randint(1, 8)):
            altered[self._random.randrange(len(altered))] ^= 1 << self._random.randrange(8)
        return bytes(altered)

    def _cut(self, data: bytes) -> bytes:
        return data[: self._random.randrange(len(data))]

    def _spliced(self, data: bytes) -> bytes:
        other = self._random.choice(self._whole)
        return (
            data[: self._random.randrange(len(data))] + other[self._random.randrange(len(other)) :]
        )

    def _lengthened(self, data: bytes) -> bytes:
        """A length that says more than there is, up to 2^63."""
        at = self._random.randrange(len(data))
        return data[:at] + b"\xff" * self._random.randint(1, 9) + b"\x7f" + data[at + 1 :]

    def _made_up(self, _: bytes) -> bytes:
        return self._random.randbytes(self._random.randint(0, 4000))


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except grpc.RpcError as error:
        trailers = dict(error.trailing_metadata() or ())
        return str(trailers.get("arion-code", error.code().name))
    return ANSWERED


def first(stream: Any) -> None:
    """Read what a stream begins with, for a moment, and leave."""
    next(stream, None)
    stream.cancel()


class Calls:
    """Every call of both ports, with bytes instead of messages."""

    def __init__(self, evil: Attacker) -> None:
        service, authority = evil.service, Credentials(evil.service.home.authority.pem)
        self.exchange = channel_of(service.ports.exchange, evil.credentials)
        self.enrolment = channel_of(service.ports.enrolment, authority)
        csr = signing_request(new_connection_key(), "evil")
        token = str(service.home.registry.invite("newcomer"))
        message, digest = evil.asked(payload=PAYLOAD), evil.service.home.mailbox.blobs.put(PAYLOAD)
        self.whole = {
            "Join": [pb.JoinRequest(
                    protocol=PROTOCOL, token=token, csr=csr, identity_key=bytes(32)
                )],
            "Collect": [pb.CollectRequest(csr_digest=bytes(32))],
            "Listen": [pb.ListenRequest(protocol=PROTOCOL)],
            "Fetch": [pb.FetchRequest(digest=digest, offset=5)],
            "Progress": [pb.ProgressRequest(message=message, payload_digest=digest)],
            "Renew": [pb.RenewRequest(csr=csr)],
            "List": [pb.FetchRequest(digest=digest)],  # its own has no fields to alter
            "Ledgers": [pb.FetchRequest(digest=digest)],
            "Pull": [pb.PullRequest(artefact=bytes(32), file="variant.json", offset=5)],
            "Answer": [head(message), head(message, b""), pb.AnswerPart(data=PAYLOAD[:5000])],
        }  # fmt: skip

    def make(self, name: str, fuzzer: Fuzzer) -> Callable[[], object]:
        """One altered call."""
        plain = {"request_serializer": None, "response_deserializer": None}
        if name in ("Join", "Collect"):
            join = self.enrolment.unary_unary(f"/arion.v1.Enrolment/{name}", **plain)
            return lambda: join(fuzzer.message(), timeout=10)
        places = {"List": "Artefacts", "Pull": "Artefacts", "Ledgers": "Audit"}
        service = places.get(name, "Exchange")
        path = f"/arion.v1.{service}/{name}"
        if name == "Answer":
            parts = fuzzer.messages()
            return lambda: self.exchange.stream_unary(path, **plain)(iter(parts), timeout=10)
        if name in ("Listen", "Fetch", "Pull", "Ledgers"):
            stream = self.exchange.unary_stream(path, **plain)
            return lambda: first(stream(fuzzer.message(), timeout=0.3))
        return lambda: self.exchange.unary_unary(path, **plain)(fuzzer.message(), timeout=10)

    def close(self) -> None:
        self.exchange.close()
        self.enrolment.close()


def rows(evil: Attacker) -> dict[str, list[Any]]:
    """What the database holds; certificates are renewed rightly by whole requests."""
    kept = [
        INVITATIONS,
        REPLIES,
        select(MESSAGES.c.id, MESSAGES.c.state),
        select(MEMBERS.c.name, MEMBERS.c.status, MEMBERS.c.role, MEMBERS.c.identity_key),
    ]
    with evil.service.home.engine.connect() as connection:
        return {
            str(query): sorted(map(tuple, connection.execute(_select(query)).all()), key=repr)
            for query in kept
        }


def _select(query: Any) -> Any:
    return query if hasattr(query, "selected_columns") else select(query)


def resident_mb() -> float:
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line
    )
    return int(line.split()[1]) / 1024


@pytest.fixture
def fuzzed(attack: Callable[..., Attacker]) -> Iterator[Callable[[int, int], Counter[str]]]:
    evil = attack(**FREE)
    calls = Calls(evil)

    def run(seed: int, count: int) -> Counter[str]:
        before, outcomes = rows(evil), Counter[str]()
        for name, whole in calls.whole.items():
            fuzzer = Fuzzer(seed, [message.SerializeToString() for message in whole])
            for _ in range(count):
                outcomes[f"{name} {outcome(calls.make(name, fuzzer))}"] += 1
            evil.honest_is_served()
        answered = rows(evil)
        assert len(outcomes) > 12, outcomes
        assert not [found for found in outcomes if found.endswith(" internal")], outcomes
        honest = len(calls.whole)
        for table, found in answered.items():
            extra = len(found) - len(before[table])
            if table == "replies":  # a whole answer may have been among them, and counts once
                assert honest <= extra <= honest + 1, outcomes
            else:
                assert extra == (honest if "messages" in table else 0), (table, outcomes)
        return outcomes

    yield run
    calls.close()


def test_malformed_messages(fuzzed: Callable[[int, int], Counter[str]]) -> None:
    outcomes = fuzzed(0, 300)
    assert outcomes["Answer bad-answer"] > 10
    assert outcomes["Join bad-message"] > 10


@pytest.mark.slow
def test_10000_malformed_messages_cost_no_memory(
    fuzzed: Callable[[int, int], Counter[str]],
) -> None:
    fuzzed(1, 1000)
    before = resident_mb()
    print(dict(fuzzed(2, 10_000)))
    assert resident_mb() - before < 50
