"""Members, invitations and the mailbox, as the first service had them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "invitations",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
        sa.Column("used", sa.Float),
    )
    op.create_table(
        "members",
        sa.Column("address", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(63), nullable=False, unique=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("identity_key", sa.LargeBinary, nullable=False),
        sa.Column("csr", sa.LargeBinary, nullable=False),
        sa.Column("csr_digest", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("certificate", sa.LargeBinary, nullable=False),
        sa.Column("seen", sa.Float),
    )
    op.create_table(
        "messages",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("run", sa.String(200), nullable=False, index=True),
        sa.Column("address", sa.Integer, nullable=False, index=True),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("payload_digest", sa.LargeBinary, nullable=False),
        sa.Column("payload_bytes", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("posted", sa.Float, nullable=False),
    )
    op.create_table(
        "replies",
        sa.Column("message", sa.String(32), primary_key=True),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("payload_digest", sa.LargeBinary, nullable=False),
        sa.Column("payload_bytes", sa.BigInteger, nullable=False),
    )
