"""Renewals are signed by all members."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Drop the note of who does."""
    op.drop_column("members", "signs_renewals")
