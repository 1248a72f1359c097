"""Settings of the HTTP front alone; what all processes must agree on is in `jobs.settings`."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MAX_JSON_BYTES = 8 * 1024 * 1024  # a step that excludes ten thousand layers with long names fits


class HttpSettings(BaseSettings):
    """Where the service listens."""

    model_config = SettingsConfigDict(env_prefix="WINNOW_", extra="ignore", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address that the service listens on.")
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port that the service listens on; 0 takes any free one."
    )
