"""Forced renewals, signed renewals, and approvals by two operators."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns and the table."""
    signs = sa.Column("signs_renewals", sa.Boolean, nullable=False, server_default=sa.false())
    op.add_column("members", signs)
    op.add_column("members", sa.Column("certificates_from", sa.Float))
    op.create_table(
        "approvals",
        sa.Column("csr_digest", sa.LargeBinary, primary_key=True),
        sa.Column("operator", sa.String(63), primary_key=True),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.Column("given", sa.Float, nullable=False),
    )
