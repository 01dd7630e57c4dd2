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
