"""When a search was asked to deliver what it has."""  # noqa: N999

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "finish_requested"
down_revision: str | None = "first_tables"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("finish_requested_at", sa.DateTime(timezone=True)))


def downgrade() -> None:
    # Not in a batch: that makes a new table, and on SQLite it would be one without the checks of `state` and `kind`.
    op.drop_column("jobs", "finish_requested_at")
