"""What a member remembers of rounds; `privacy.secagg.store` keeps it on a disk."""

from typing import NamedTuple, Protocol

from privacy.rounds import RoundPlan


class PlanKey(NamedTuple):
    """The place of a plan in a run; at most one plan is ever claimed for it."""

    federation: str
    run: str
    epoch: int
    round: int
    attempt: int


class RoundStore(Protocol):
    """What a member remembers about rounds; every method is durable before it returns."""

    def claim_roster(self, federation: str, nonce_commitment: bytes, roster_digest: bytes) -> None:
        """Note what a nonce is revealed for, before it is; the same again changes nothing.

        StoreConflict for a second roster of one nonce, and beyond LARGEST_EPOCHS of them.
        """

    def claim_plan(self, key: PlanKey, digest: bytes) -> None:
        """Take part under this plan; StoreConflict unless (round, attempt) is new and later."""

    def is_claimed(self, plan_digest: bytes) -> bool:
        """Tell whether this plan was claimed."""

    def withdraw_claim(self, plan_digest: bytes) -> None:
        """Forget a claim under which nothing left the node: only the gate, after a crash."""

    def last_seen(self, federation: str, run: str) -> tuple[int, int] | None:
        """Return the last (round, attempt) claimed in a run."""

    def signed_set(self, plan_digest: bytes) -> bytes | None:
        """Return the digest of the survivor set signed under a plan."""

    def record_signed_set(self, plan_digest: bytes, set_digest: bytes) -> bytes:
        """Record the set unless there is one, in one transaction; return the one recorded."""

    def unmask_reply(self, plan_digest: bytes) -> bytes | None:
        """Return the reply given under a plan."""

    def record_unmask_reply(self, plan_digest: bytes, reply: bytes) -> bytes:
        """Record the reply unless there is one, in one transaction; return the one recorded."""


class StoreConflict(ValueError):  # noqa: N818  (an outcome of the protocol)
    """A plan whose round and attempt, or a nonce whose roster, were claimed before; or too many."""


def plan_key(plan: RoundPlan) -> PlanKey:
    """Return the plan's place in its run."""
    return PlanKey(plan.federation, plan.run, plan.epoch, plan.round, plan.attempt)
