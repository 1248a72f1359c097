"""Bringing a database to the newest tables, from a checkout as well as from an installed package."""

from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from jobs.database import make_engine


@dataclass(frozen=True)
class Revisions:
    """Which tables a database has, and which this version of Winnow needs."""

    current: str | None
    head: str

    @property
    def is_current(self) -> bool:
        return self.current == self.head


def upgrade_database(url: str) -> None:
    """Apply every change that the database does not have yet. Harmless to repeat, and to do twice at once."""
    command.upgrade(alembic_config(url), "head")


def current_and_head(url: str) -> Revisions:
    """The database's revision, and the one it should have."""
    head = ScriptDirectory.from_config(alembic_config(url)).get_current_head()
    assert head is not None  # there is a first migration
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            return Revisions(current=MigrationContext.configure(connection).get_current_revision(), head=head)
    finally:
        engine.dispose()


def alembic_config(url: str) -> Config:
    """The configuration that a program needs; people on a command line have it in pyproject.toml."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["url"] = url  # not a main option: those give a meaning to the % of an escaped password
    return config
