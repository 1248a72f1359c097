"""The tables. Rows are read here as plain objects; every statement that reads or writes them is in `jobs.repository`."""

import math
import re
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

from jobs.states import JobState, UploadState


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC on every database; SQLite, which has no time zones, stores them naive."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(value: Any) -> Any:  # any JSON document
    """`value` as every database can keep it and every client can read it.

    What users send is refused at the edge if it holds such things; this is for names, messages and figures that a
    worker found in somebody's file. NUL and lone surrogates become U+FFFD, numbers that JSON doesn't have become null.
    """
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    return value


class JsonDocument(TypeDecorator[Any]):  # any JSON document
    """JSON; None is NULL."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(JSONB(none_as_null=True))
        return dialect.type_descriptor(JSON(none_as_null=True))

    def process_bind_param(self, value: Any, _dialect: Dialect) -> Any:
        return storable(value)


class FreeText(TypeDecorator[str]):
    """Text that a user or a worker chose."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, _dialect: Dialect) -> str | None:
        return None if value is None else str(storable(value))


def _one_of(column: str, values: type[JobState] | type[UploadState] | tuple[str, ...], name: str) -> CheckConstraint:
    # A checked string, not an enumerated type: a new state then needs no ALTER TYPE.
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=name)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Upload:
    """What a model and a dataset have in common: a file, and what a worker found in it."""

    id: Mapped[str] = mapped_column(String(30), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    filename: Mapped[str] = mapped_column(FreeText)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    inspection: Mapped[dict[str, Any] | None] = mapped_column(JsonDocument)
    error: Mapped[dict[str, Any] | None] = mapped_column(JsonDocument)
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    inspected_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class ModelRow(Upload, Base):
    __tablename__ = "models"
    __table_args__ = (_one_of("state", UploadState, "state"),)


class DatasetRow(Upload, Base):
    __tablename__ = "datasets"
    __table_args__ = (_one_of("state", UploadState, "state"),)


class JobRow(Base):
    """A job as a client sees it, and the inspections that the service gives itself: one life, one set of rules."""

    __tablename__ = "jobs"
    __table_args__ = (
        _one_of("state", JobState, "state"),
        _one_of("kind", ("compress", "inspect_model", "inspect_dataset"), "kind"),
        # None on lease_expires_at: few jobs are live, and a heartbeat should not have to move index entries.
        Index("ix_jobs_state_id", "state", "id"),
        Index("ix_jobs_kind_id", "kind", "id"),
    )

    id: Mapped[str] = mapped_column(String(30), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    version: Mapped[int] = mapped_column(default=1)  # grows with every change that a client can see; the ETag
    last_event: Mapped[int] = mapped_column(default=0)  # the newest event's number

    request: Mapped[dict[str, Any]] = mapped_column(JsonDocument)
    model_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"), index=True)
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"), index=True)  # of an inspection
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    deadline_seconds: Mapped[float] = mapped_column()

    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    available_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    cancel_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finish_requested_at: Mapped[datetime | None] = mapped_column(UtcDateTime)  # the search is to deliver what it has
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    hinted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)  # when its message was last put into the outbox

    attempt: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int] = mapped_column()
    worker: Mapped[str | None] = mapped_column(FreeText)
    lease_token: Mapped[str | None] = mapped_column(String(32))  # who holds it may write; everyone else is fenced off
    lease_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    phase: Mapped[str | None] = mapped_column(String(64))
    progress: Mapped[float] = mapped_column(default=0.0)
    step: Mapped[int | None] = mapped_column()
    message: Mapped[str | None] = mapped_column(FreeText)

    verdict: Mapped[str | None] = mapped_column(FreeText)
    error: Mapped[dict[str, Any] | None] = mapped_column(JsonDocument)


class JobEventRow(Base):
    """What happened to a job, without gaps; written in the transaction that made it happen."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    data: Mapped[dict[str, Any]] = mapped_column(JsonDocument)


class JobInputRow(Base):
    """Which dataset plays which role in a job; keeps a dataset in use from being collected."""

    __tablename__ = "job_inputs"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    role: Mapped[str] = mapped_column(String(16), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), index=True)


class ArtifactRow(Base):
    """A file that a job delivered."""

    __tablename__ = "artifacts"
    __table_args__ = (Index("uq_artifacts_job_id_name", "job_id", "name", unique=True),)

    id: Mapped[str] = mapped_column(String(30), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    name: Mapped[str] = mapped_column(String(128))
    kind: Mapped[str] = mapped_column(String(16))
    media_type: Mapped[str] = mapped_column(String(128))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class OutboxRow(Base):
    """A message that is owed to the broker; written with the change that owes it, deleted once it was sent."""

    __tablename__ = "outbox"

    # SQLite numbers rows by itself only where the type is exactly INTEGER.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    due_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class IdempotencyRow(Base):
    """The answer that a creating request got, for whoever sends the same key again."""

    __tablename__ = "idempotency_keys"

    route: Mapped[str] = mapped_column(String(128), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    status: Mapped[int | None] = mapped_column()  # null while the first request is still being served
    response: Mapped[dict[str, Any] | None] = mapped_column(JsonDocument)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
