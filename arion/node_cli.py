"""`arion node`: institutions join and serve; the coordinator's operator invites and approves."""

from arion.parts import Part, group_of

NODE_PARTS = {
    "invite": Part(
        "Print an invitation, valid once and for seven days. For the operator.",
        "arion.node_members_cli:invite_command",
    ),
    "list": Part(
        "List members with their fingerprints. For the operator.",
        "arion.node_members_cli:list_command",
    ),
    "approve": Part(
        "Let a member that joined connect, after its fingerprint was compared. For the operator.",
        "arion.node_members_cli:approve_command",
    ),
    "rotate": Part(
        "Replace a node's connection key and certificate now, by its identity key.",
        "arion.node_members_cli:rotate_command",
    ),
    "revoke": Part(
        "Refuse a member from its next call on, and withdraw open invitations. For the operator.",
        "arion.node_members_cli:revoke_command",
    ),
    "join": Part(
        "Join a federation and wait for approval; again, it goes on waiting. For institutions.",
        "arion.node_join_cli:join_command",
    ),
    "members": Part(
        "Show the fingerprints of all members as the coordinator relays them, and who is pinned.",
        "arion.node_consent_cli:members_command",
    ),
    "pin": Part(
        "Pin keys of members, or the coordinator's, in consent.toml, if the fingerprints are the "
        "same.",
        "arion.node_consent_cli:pin_command",
    ),
    "consent": Part("What an institution will agree to.", "arion.node_consent_cli:consent_app"),
    "doctor": Part(
        "Examine settings, consent, data, disk, memory, certificate, clock and reachability.",
        "arion.node_doctor_cli:doctor_command",
    ),
    "run": Part(
        "Serve the coordinator's requests within the consent, until stopped. For institutions.",
        "arion.node_serve_cli:run_command",
    ),
    "host": Part(
        "Keep the node for Flower's SuperNode on this machine, until stopped. For institutions.",
        "arion.node_serve_cli:host_command",
    ),
}
node_app = group_of(NODE_PARTS, help="Institutions' nodes, and who may connect.")
