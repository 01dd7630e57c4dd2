"""Whether what lies in a node's home fits together, before anything is opened."""

from client.config import NODE_FILE, NodeConfig, NodeError
from privacy.consent import Consent
from privacy.identity import IdentityKey
from privacy.units import INSTITUTION, RECORD


def check_identity(config: NodeConfig, consent: Consent, identity: IdentityKey) -> None:
    """Refuse a key that the consent does not pin for this node.

    Raises:
        NodeError: another key.

    """
    if consent.members.get(config.name) != identity.public_key.hex():
        raise NodeError(
            f"Expected the identity key of member {config.name!r} in consent.toml, got another "
            "key in this home. Pin this node's own fingerprint in the consent."
        )


def check_coordinator(consent: Consent, joined: str) -> None:
    """Refuse where the consent pins another coordinator than the one that was joined.

    Args:
        consent: gives the pinned key.
        joined: the key of the coordinator that the node joined, hex; "" where it is not known.

    Raises:
        NodeError: another key.

    """
    if joined not in ("", consent.coordinator_key):
        raise NodeError(
            "Expected the key of the coordinator that this node joined as coordinator_key in "
            "consent.toml, got another. Compare its fingerprint with the operator by telephone, "
            "remove the old line, and pin it: arion node pin coordinator FINGERPRINT."
        )


def weight_bytes(config: NodeConfig) -> int:
    """Return the bytes of the base model's weights.

    Raises:
        NodeError: there are none.

    """
    files = list(config.base_model.glob("*.safetensors"))
    if not files:
        raise NodeError(
            f"Expected a model folder at {config.base_model}, got none with weights. Copy the "
            f"federation's base model there, or correct base_model in {NODE_FILE}."
        )
    return sum(path.stat().st_size for path in files)


def check_places(config: NodeConfig) -> None:
    """Refuse to serve without data or base model; neither is read.

    Raises:
        NodeError: one of them is not there.

    """
    if not config.data.exists():
        raise NodeError(
            f"Expected the shard at {config.data}, got nothing there. Bring it back, or correct "
            f"data in {NODE_FILE}."
        )
    weight_bytes(config)


def check_unit(config: NodeConfig, consent: Consent) -> None:
    """One record's removal must be one unit's removal, and an institution all of it.

    Raises:
        NodeError: data whose units are not the consent's.

    """
    field = config.fields.unit_field
    if consent.unit == INSTITUTION:
        if config.parts > 1:
            raise NodeError(
                f"Expected the whole institution at one node under unit = {INSTITUTION!r}, got "
                f"part {config.part} of {config.parts} in {NODE_FILE}. Set parts = 1."
            )
    elif (consent.unit == RECORD) != (field is None):
        raise NodeError(
            f"Expected data whose unit_field fits the consent's unit {consent.unit!r}, got "
            f"unit_field {field!r} in {NODE_FILE}. Set the field that names the unit, or none for "
            "records."
        )
