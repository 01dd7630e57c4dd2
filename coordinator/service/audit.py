"""What the coordinator wrote down, for auditors and operators: ledgers as one bundle.

Nothing in it is private: entries, signed heads and countersignatures of the coordinator's ledger,
the newest heads of the members' own, the signed plans of all attempts, and the keys that runs were
made with. It is read while runs go on, without their turn at the ledger.
"""

import asyncio
from pathlib import Path
from typing import Any

import grpc

from coordinator.attempts import read_attempts
from coordinator.service.callers import Callers
from coordinator.service.limits import Limits, Slots
from coordinator.service.refusals import Refused
from coordinator.service.sending import Sender
from coordinator.service.stores import CHUNK_BYTES
from coordinator.shared import LEDGER_FOLDER, MEMBERS_FOLDER, RUNS_FOLDER
from privacy.ledger.bundle import bundle
from privacy.ledger.entries import LedgerError
from privacy.ledger.plans import PLANS_FILE, plan_lines
from protos.arion.v1 import service_pb2 as pb
from protos.arion.v1 import service_pb2_grpc as rpc


class Audit(rpc.AuditServicer):
    """Shows the ledgers in a coordinator's home.

    Args:
        callers: admits members.
        home: the coordinator's.
        limits: of a member.

    """

    def __init__(self, callers: Callers, home: Path, limits: Limits) -> None:
        self._callers, self._home, self._limits = callers, home, limits
        self._transfers = Slots(1, "too-many-transfers", "transfers")

    async def Ledgers(self, request: Any, context: Any) -> None:  # noqa: N802
        """Send the bundle."""
        member = await self._callers.admit(context, "auditor", "operator")
        with self._transfers.take(member.name):
            data = await asyncio.to_thread(self._bundle)
            sender = Sender(context, self._limits, len(data))
            for start in range(0, len(data), CHUNK_BYTES):
                await sender.send(pb.Chunk(data=data[start : start + CHUNK_BYTES]))

    def _plans(self) -> dict[str, bytes]:
        homes = sorted((self._home / RUNS_FOLDER).glob("*"))
        plans = (attempt.plan for home in homes for attempt in read_attempts(home))
        return {f"{LEDGER_FOLDER}/{PLANS_FILE}": plan_lines(plans)}

    def _bundle(self) -> bytes:
        try:
            return bundle(self._home, (LEDGER_FOLDER, MEMBERS_FOLDER), self._plans)[0]
        except LedgerError as error:  # whose text has a path of ours
            raise Refused(
                grpc.StatusCode.NOT_FOUND,
                "no-ledger",
                "Expected a ledger, got none: no run has begun here. Ask the operator.",
            ) from error
