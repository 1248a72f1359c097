"""First tables."""  # noqa: N999

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "first_tables"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# As they were when this migration was written; what `jobs.tables` says today is none of its business.
DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    for table in ("models", "datasets"):
        _create_uploads(table)
    _create_jobs()
    _create_what_belongs_to_jobs()
    op.create_table(
        "idempotency_keys",
        sa.Column("route", sa.String(128), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("response", DOCUMENT),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("route", "key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_expires_at", "idempotency_keys", ["expires_at"])


def downgrade() -> None:
    for table in ("idempotency_keys", "outbox", "artifacts", "job_inputs", "job_events", "jobs", "datasets", "models"):
        op.drop_table(table)


def _create_uploads(table: str) -> None:
    op.create_table(
        table,
        sa.Column("id", sa.String(30), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("inspection", DOCUMENT),
        sa.Column("error", DOCUMENT),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("inspected_at", MOMENT),
        sa.Column("deleted_at", MOMENT),
        sa.CheckConstraint("state IN ('inspecting', 'ready', 'rejected')", name=op.f(f"ck_{table}_state")),
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
    )
    op.create_index(f"ix_{table}_sha256", table, ["sha256"])


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(30), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("last_event", sa.Integer(), nullable=False),
        sa.Column("request", DOCUMENT, nullable=False),
        sa.Column("model_id", sa.String(30)),
        sa.Column("dataset_id", sa.String(30)),
        sa.Column("parent_id", sa.String(30)),
        sa.Column("deadline_seconds", sa.Double(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("available_at", MOMENT, nullable=False),
        sa.Column("started_at", MOMENT),
        sa.Column("cancel_requested_at", MOMENT),
        sa.Column("finished_at", MOMENT),
        sa.Column("hinted_at", MOMENT),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("worker", sa.Text()),
        sa.Column("lease_token", sa.String(32)),
        sa.Column("lease_expires_at", MOMENT),
        sa.Column("phase", sa.String(64)),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("step", sa.Integer()),
        sa.Column("message", sa.Text()),
        sa.Column("verdict", sa.Text()),
        sa.Column("error", DOCUMENT),
        sa.CheckConstraint("kind IN ('compress', 'inspect_model', 'inspect_dataset')", name=op.f("ck_jobs_kind")),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_jobs_state"),
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_jobs_model_id_models"),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name="fk_jobs_dataset_id_datasets"),
        sa.ForeignKeyConstraint(["parent_id"], ["jobs.id"], name="fk_jobs_parent_id_jobs"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_state_id", "jobs", ["state", "id"])
    op.create_index("ix_jobs_kind_id", "jobs", ["kind", "id"])
    for column in ("model_id", "dataset_id", "parent_id"):
        op.create_index(f"ix_jobs_{column}", "jobs", [column])


def _create_what_belongs_to_jobs() -> None:
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.String(30), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("data", DOCUMENT, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_events_job_id_jobs"),
        sa.PrimaryKeyConstraint("job_id", "seq", name="pk_job_events"),
    )
    op.create_table(
        "job_inputs",
        sa.Column("job_id", sa.String(30), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("dataset_id", sa.String(30), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_inputs_job_id_jobs"),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name="fk_job_inputs_dataset_id_datasets"),
        sa.PrimaryKeyConstraint("job_id", "role", name="pk_job_inputs"),
    )
    op.create_index("ix_job_inputs_dataset_id", "job_inputs", ["dataset_id"])
    op.create_table(
        "artifacts",
        sa.Column("id", sa.String(30), nullable=False),
        sa.Column("job_id", sa.String(30), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("media_type", sa.String(128), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_artifacts_job_id_jobs"),
        sa.PrimaryKeyConstraint("id", name="pk_artifacts"),
    )
    op.create_index("uq_artifacts_job_id_name", "artifacts", ["job_id", "name"], unique=True)
    op.create_index("ix_artifacts_sha256", "artifacts", ["sha256"])
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.String(30), nullable=False),
        sa.Column("due_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_outbox_job_id_jobs"),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
    )
    op.create_index("ix_outbox_job_id", "outbox", ["job_id"])
    op.create_index("ix_outbox_due_at", "outbox", ["due_at"])
