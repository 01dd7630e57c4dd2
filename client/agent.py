"""The institution's long-lived node: it dials out, hosts the ClientApp, and answers what is asked.

The agent decides nothing: consent, gate and ledger are the node's. A connection that is lost is
dialled again; a message that was not answered comes again and is answered with the same bytes.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client.arriving import Arriving
from client.membership import Membership, MembershipFile, renew
from client.proxy import link_to
from client.transport import Link, LinkLost, LinkRefused

_LOG = logging.getLogger("arion.node")
_SIGN_OF_LIFE_S, _SIGNS = 20.0, "signs of life"
_FIRST_WAIT_S, _LONGEST_WAIT_S, _HELD_S = 0.5, 30.0, 2.0

Answering = Callable[[str, str, bytes, bytes], tuple[str, bytes, bytes]]
"""(action, kind, body, payload) of a question -> (kind, body, payload) of the answer."""


class Downloads:
    """The newest payload, by its digest: an attempt's model is often that of the one before."""

    def __init__(self) -> None:
        self._digest, self._data = b"", b""
        self._begun = Arriving()

    def get(self, link: Link, envelope: Any) -> bytes:
        """Return a message's payload, fetching what has not come yet.

        Raises:
            LinkLost, LinkRefused: as `Link.fetch`; what came before a loss is kept.

        """
        digest = bytes(envelope.payload_digest)
        if digest != self._digest:
            self._digest, self._data, self._begun = digest, b"", Arriving()
        if not self._data:
            try:
                self._data = link.fetch(digest, envelope.payload_bytes, self._begun)
            except LinkRefused:
                self._digest = b""
                raise
        return self._data


class Waits:
    """How long to wait before the coordinator is dialled again.

    Twice as long each time while dials fail at once; from the shortest wait on, after a connection
    that held for two seconds: a coordinator that is started again finds its nodes soon, however
    often that happens. A dial that fails later than that was a wait itself.

    Args:
        jitter: so that many nodes do not come back at once.

    """

    def __init__(self, jitter: random.Random) -> None:
        self._jitter, self._next = jitter, _FIRST_WAIT_S

    def begin_anew(self) -> None:
        """Note that all is well."""
        self._next = _FIRST_WAIT_S

    def after(self, lasted_s: float) -> float:
        """Return the seconds to wait after a connection, or an attempt at one, that lasted so."""
        if lasted_s > _HELD_S:
            self.begin_anew()
        wait = self._next * self._jitter.uniform(0.5, 1.0)
        self._next = min(2 * self._next, _LONGEST_WAIT_S)
        return wait


class Agent:
    """Serves one node's home until it is stopped.

    Args:
        home: of a node that has joined and was approved.
        answering: what answers; `client.app.answer` in production.
        jitter: of the waits between dials, so that many nodes do not come back at once.

    """

    def __init__(
        self, home: Path, answering: Answering, jitter: random.Random | None = None
    ) -> None:
        self._home, self._answering = home, answering
        self._waits = Waits(jitter or random.SystemRandom())
        self._stopped = threading.Event()
        self._link: Link | None = None
        self._downloads = Downloads()
        self._begun = ""  # the message whose answer was sent last, in whole or in part

    def stop(self) -> None:
        """Stop after the message that is being answered."""
        self._stopped.set()
        if self._link is not None:
            self._link.close()

    def run(self) -> None:
        """Serve; returns when stopped.

        Raises:
            LinkRefused: the coordinator refuses the node for good: it was revoked, or speaks
                another version.
            NodeError: the node has not joined, was not approved, or its certificate has expired.

        """
        while not self._stopped.is_set():
            membership, began = MembershipFile(self._home).load(), time.monotonic()
            try:
                self._serve(membership)
                self._waits.begin_anew()
            except LinkLost as error:
                if self._stopped.is_set():
                    return
                if membership.due_in_s < 0:
                    continue  # the stream was closed to renew the certificate
                wait = self._waits.after(time.monotonic() - began)
                _LOG.warning("%s; dialling again in %.1f s", error, wait)
                self._stopped.wait(wait)

    def _serve(self, membership: Membership) -> None:
        """Answer over one connection, until it is lost or its certificate is due."""
        self._link = link = link_to(self._home, membership.address, membership.credentials)
        try:
            if membership.due_in_s < 0:
                renew(self._home, link)
                _LOG.info("the certificate was renewed")
                return
            _LOG.info("listening to %s as %s", membership.address, membership.name)
            for envelope in link.listen(max(1.0, membership.due_in_s)):
                self._answer(link, envelope)
                if self._stopped.is_set() or membership.due_in_s < 0:
                    return
        except LinkRefused as refusal:
            if refusal.code != "rotate":
                raise
            renew(self._home, link)
            _LOG.info("the certificate was renewed, as the operator demands")
        finally:
            link.close()

    def _answer(self, link: Link, envelope: Any) -> None:
        try:
            with _signs_of_life(link):
                payload = self._downloads.get(link, envelope) if envelope.payload_bytes else b""
                answer = self._answering(envelope.action, envelope.kind, envelope.body, payload)
                is_again, self._begun = self._begun == envelope.message, envelope.message
                is_kept = link.answer(envelope.message, *answer, is_again=is_again)
        except LinkRefused as error:
            _LOG.warning("%s was not answered: %s", envelope.action, error)
            return
        if not is_kept:
            _LOG.info("%s came too late: that part of the round is over", envelope.action)


@contextmanager
def _signs_of_life(link: Link) -> Iterator[None]:
    """Say that the node is there while it answers: a stream that is lost then is opened only later.

    Runs do not wait for whoever is away.
    """
    done = threading.Event()

    def say() -> None:
        while not done.wait(_SIGN_OF_LIFE_S):
            try:
                link.say_there()
            except (LinkLost, LinkRefused) as error:
                _LOG.debug("the coordinator does not hear that the node is there: %s", error)

    threading.Thread(target=say, name=_SIGNS, daemon=True).start()
    try:
        yield
    finally:
        done.set()
