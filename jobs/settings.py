"""Settings, read from the environment (`WINNOW_…`) once, where a process starts; everything below gets values."""

from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What every process of one installation must agree on. The README has this table too; a test keeps them equal."""

    model_config = SettingsConfigDict(env_prefix="WINNOW_", extra="ignore", frozen=True)

    data_folder: Path = Field(default=Path("var"), description="Everything Winnow keeps on this machine.")
    database_url: str = Field(
        default="", validate_default=True, description="SQLAlchemy URL. Default: SQLite in the data folder."
    )
    redis_url: str = Field(default="redis://127.0.0.1:6379/0", description="Broker of the Celery tasks.")
    queue: str = Field(default="winnow", description="Celery queue that this installation's workers listen on.")

    max_upload_bytes: int = Field(default=16 * 2**30, ge=1, description="Largest model or dataset.")
    min_free_bytes: int = Field(
        default=512 * 2**20, ge=0, description="Uploads are refused when less disk would be left."
    )
    keep_blobs_seconds: float = Field(default=24 * 3600, ge=0, description="How long unreferenced files stay.")
    idempotency_seconds: float = Field(
        default=24 * 3600, ge=1, description="How long an Idempotency-Key is remembered."
    )

    lease_seconds: float = Field(
        default=60, gt=0, description="A worker that is silent for this long has lost its job."
    )
    heartbeat_seconds: float = Field(
        default=1, gt=0, description="How often a supervisor renews its lease and looks for a cancel."
    )
    max_attempts: int = Field(default=3, ge=1, description="How often a job is started when workers are lost.")
    retry_delay_seconds: float = Field(
        default=2, ge=0, description="Pause before a lost job runs again; doubles each time."
    )
    reminder_seconds: float = Field(
        default=60, gt=0, description="A queued job's message is sent again after this long."
    )
    housekeeping_seconds: float = Field(
        default=1, gt=0, description="How often lost workers and unsent messages are looked for."
    )

    stall_seconds: float = Field(
        default=1800, gt=0, description="A runner that reports nothing for this long is stopped."
    )
    inspection_deadline_seconds: float = Field(
        default=600, gt=0, description="Time a worker may take to read an upload."
    )
    cancel_grace_seconds: float = Field(
        default=1.5, ge=0, description="Between asking a runner to stop and killing it."
    )
    memory_limit_bytes: int = Field(
        default=16 * 2**30, ge=2**28, description="Resident memory of one runner and its children."
    )
    disk_limit_bytes: int = Field(default=32 * 2**30, ge=2**20, description="Largest file that a runner may write.")
    sandbox: bool = Field(
        default=True, description="Cut runners off from the network and from other files where the kernel allows it."
    )

    @field_validator("database_url")
    @classmethod
    def _default_database(cls, url: str, others: ValidationInfo) -> str:
        return url or f"sqlite:///{(others.data['data_folder'] / 'winnow.sqlite').absolute()}"

    @model_validator(mode="after")
    def _lease_outlives_heartbeats(self) -> "Settings":
        if self.heartbeat_seconds * 3 > self.lease_seconds:
            raise ValueError("lease_seconds must be at least three heartbeats")
        return self

    @property
    def storage_folder(self) -> Path:
        return (self.data_folder / "storage").absolute()

    @property
    def jobs_folder(self) -> Path:
        """Where the workers of this machine lay out their job folders."""
        return (self.data_folder / "jobs").absolute()
