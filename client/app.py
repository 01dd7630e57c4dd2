"""The Flower ClientApp: each of the coordinator's messages goes to the node that lives here.

Where a host keeps the node (`client.host`), as beside Flower's SuperNodes, it gets the message.
Security state lives in the node's home; the cache below only spares the reading of model and data.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.host import ask, is_hosted
from client.node import Node
from privacy.identity import SignatureError
from privacy.ledger.entries import LedgerError
from privacy.rounds import PlanRefused
from privacy.secagg.header import SecAggRefused
from privacy.secagg.keys import KeysLostError, RosterError
from protos.epoch_messages import (
    KeyBundleMessage,
    RevealMessage,
    RevealsMessage,
    RosterMessage,
)
from protos.flower import RUN_ID, from_records, new_message, parcel_of, records_of, to_records
from protos.messages import Refusal, SurvivorsRequest, UnmaskRequest
from protos.round_messages import (
    Done,
    EpochRequest,
    HeadHeld,
    HeadOffer,
    HeadQuery,
    OwnHead,
    OwnHeadShown,
    RunClose,
    UploadRequest,
)
from protos.wire import Parcel, WireError, WireMessage

app = ClientApp()

_LOG = logging.getLogger("arion.node")
_NODES: dict[Path, Node] = {}
_LARGEST_DETAIL = 1_000
_OWN_ADDRESS = 2
ACTIONS = frozenset(
    {"query.close", "query.countersign", "query.head", "query.keys", "query.recall",
     "query.reveals", "query.roster", "query.survivors", "query.unmask", "train.upload"}
)  # fmt: skip
"""All that a coordinator of this version asks; a newer one may ask more."""
FLOWER = "flower"
"""The runtime of nodes that Flower's engines ask, as plans and consents name it."""

Question = tuple[str, bytes, bytes]
"""Kind, body and payload of a message."""


def open_node(context: Context) -> Node:
    """Return the node whose home the context names, opened once in this process."""
    home = _home(context)
    if home not in _NODES:
        _NODES[home] = Node(home, _runtime(context))
    return _NODES[home]


def keep(node: Node) -> None:
    """Have messages for a node's home answered by this node, which `close_nodes` closes."""
    _NODES[node.home.resolve()] = node


def _runtime(context: Context) -> str:
    return str(context.node_config.get("runtime", FLOWER))


def _home(context: Context) -> Path:
    """The node's home: its own setting, or, in Flower's simulation, one of the run's nodes."""
    if "home" in context.node_config:
        return Path(str(context.node_config["home"])).resolve()
    homes = sorted(Path(str(context.run_config["nodes"])).iterdir())
    return homes[int(str(context.node_config["partition-id"]))].resolve()


def close_nodes() -> None:
    """Close every node of this process; their next message opens them again."""
    while _NODES:
        _NODES.popitem()[1].close()


@app.query("keys")
def publish_keys(message: Message, context: Context) -> Message:
    """Publish this epoch's key bundle."""

    def act(node: Node, parcel: Parcel) -> Parcel:
        assert isinstance(parcel.message, EpochRequest)
        return Parcel(
            KeyBundleMessage(node.publish_keys(parcel.message.federation, parcel.message.epoch))
        )

    return _answer(message, context, EpochRequest, act)


@app.query("roster")
def accept_roster(message: Message, context: Context) -> Message:
    """Accept the pinned members' bundles, and reveal the nonce that ours commits to."""

    def act(node: Node, parcel: Parcel) -> Parcel:
        assert isinstance(parcel.message, RosterMessage)
        return Parcel(RevealMessage(node.accept_roster(parcel.message.bundles)))

    return _answer(message, context, RosterMessage, act)


@app.query("reveals")
def accept_reveals(message: Message, context: Context) -> Message:
    """Enter the epoch that all members' nonces make."""

    def act(node: Node, parcel: Parcel) -> Parcel:
        assert isinstance(parcel.message, RevealsMessage)
        node.accept_reveals(parcel.message.reveals)
        return Parcel(Done())

    return _answer(message, context, RevealsMessage, act)


@app.query("recall")
def recall(message: Message, context: Context) -> Message:
    """Hold this node's own ledger against the newest head of it that the coordinator kept."""

    def act(node: Node, parcel: Parcel) -> Parcel:
        assert isinstance(parcel.message, OwnHeadShown)
        return Parcel(OwnHead(node.recall(parcel.message.head)))

    return _answer(message, context, OwnHeadShown, act)


@app.train("upload")
def upload(message: Message, context: Context) -> Message:
    """Train under a plan and release one sealed upload."""

    def act(node: Node, parcel: Parcel) -> Parcel:
        assert isinstance(parcel.message, UploadRequest)
        sealed = node.release(parcel.message, memoryview(parcel.payload))
        return Parcel(sealed.upload, bytes(sealed.words))

    return _answer(message, context, UploadRequest, act)


@app.query("survivors")
def sign_survivors(message: Message, context: Context) -> Message:
    """Stand for one survivor set."""

    def act(node: Node, parcel: Parcel) -> Parcel:
        assert isinstance(parcel.message, SurvivorsRequest)
        return Parcel(node.sign_survivors(parcel.message))

    return _answer(message, context, SurvivorsRequest, act)


@app.query("unmask")
def unmask(message: Message, context: Context) -> Message:
    """Give shares of the certified set."""

    def act(node: Node, parcel: Parcel) -> Parcel:
        assert isinstance(parcel.message, UnmaskRequest)
        return Parcel(node.unmask(parcel.message))

    return _answer(message, context, UnmaskRequest, act)


@app.query("head")
def held_head(message: Message, context: Context) -> Message:
    """Say which head of the coordinator's ledger this node holds."""
    return _answer(message, context, HeadQuery, lambda node, _: Parcel(HeadHeld(node.held_head())))


@app.query("countersign")
def countersign(message: Message, context: Context) -> Message:
    """Countersign the coordinator's newest head."""

    def act(node: Node, parcel: Parcel) -> Parcel:
        assert isinstance(parcel.message, HeadOffer)
        return Parcel(node.countersign(parcel.message))

    return _answer(message, context, HeadOffer, act)


@app.query("close")
def close_run(message: Message, context: Context) -> Message:
    """Note that a run is over."""

    def act(node: Node, parcel: Parcel) -> Parcel:
        assert isinstance(parcel.message, RunClose)
        node.close_run(parcel.message.federation, parcel.message.run)
        return Parcel(Done())

    return _answer(message, context, RunClose, act)


def answer(home: Path, runtime: str, action: str, question: Question) -> Question:
    """Answer one message outside of Flower's engines: kind, body and payload in, the same out.

    Args:
        home: the node's home.
        runtime: where it runs.
        action: message type, such as "train.upload".
        question: what came.

    """
    if action not in ACTIONS:
        return parcel_of(to_records(_unknown(action)))
    context = Context(
        run_id=RUN_ID,
        node_id=_OWN_ADDRESS,
        node_config={"home": str(home), "runtime": runtime},
        state=RecordDict(),
        run_config={},
    )
    message = new_message(records_of(*question), action, number=1, address=_OWN_ADDRESS)
    return parcel_of(app(message, context).content)


def _answer(
    message: Message,
    context: Context,
    kind: type[WireMessage],
    act: Callable[[Node, Parcel], Parcel],
) -> Message:
    """Read, act, reply; an outcome of the protocol becomes a Refusal, never an exception."""
    home = _home(context)
    if _runtime(context) == FLOWER and home not in _NODES and is_hosted(home):
        found = ask(home, message.metadata.message_type, parcel_of(message.content))
        return Message(records_of(*found), reply_to=message)
    node = open_node(context)
    try:
        reply = act(node, from_records(message.content, kind))
    except (PlanRefused, SecAggRefused) as refusal:
        reply = _refusal(node, str(refusal.code), getattr(refusal, "clause", ""), refusal)
    except KeysLostError as error:
        reply = _refusal(node, error.code, "members", error)
    except RosterError as error:
        reply = _refusal(node, "bad-roster", "members", error)
    except (LedgerError, SignatureError) as error:
        reply = _refusal(node, "bad-ledger", "", error)
    except WireError as error:
        reply = _refusal(node, "bad-message", "", error)
    return Message(to_records(reply), reply_to=message)


def _unknown(action: str) -> Parcel:
    """Refuse what only a newer coordinator asks; the node goes on."""
    detail = (
        f"Expected a question that this version of Arion knows, got {action[:80]!r}: the "
        "coordinator runs a newer version. Upgrade this node."
    )
    _LOG.warning("refused (unknown-action): %s", detail)
    return Parcel(Refusal("unknown-action", "", detail))


def _refusal(node: Node, code: str, clause: str, error: Exception) -> Parcel:
    _LOG.warning("%s refuses (%s): %s", node.name, code, error)
    return Parcel(Refusal(code, clause, str(error)[:_LARGEST_DETAIL]))
