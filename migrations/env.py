"""How Alembic reaches the database. The address comes from whoever calls, else from the settings (WINNOW_DATABASE_URL)."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection, make_url, text

from jobs.database import make_engine
from jobs.settings import Settings
from jobs.tables import Base, FreeText, JsonDocument, UtcDateTime


def write_plain_type(_kind: str, value: object, autogenerate: AutogenContext) -> str | Literal[False]:
    """How a new migration spells our column types: by what they were that day, not by importing them."""
    match value:
        case UtcDateTime():
            return "sa.DateTime(timezone=True)"
        case FreeText():
            return "sa.Text()"
        case JsonDocument():
            autogenerate.imports.add("from sqlalchemy.dialects import postgresql")
            return 'sa.JSON().with_variant(postgresql.JSONB(), "postgresql")'
        case _:
            return False


UPGRADE_LOCK = 7_346_221_908_114_055_531  # any number that nothing else in the database locks
OPTIONS: dict[str, Any] = {  # Alembic's keyword arguments have many types
    "target_metadata": Base.metadata,
    "render_item": write_plain_type,
    "compare_type": True,
    "compare_server_default": True,
    "render_as_batch": True,  # SQLite changes a table by making a new one
    "transactional_ddl": True,  # all or nothing, on SQLite too
}


def write_statements(url: str) -> None:
    """Print the SQL instead of running it (`alembic upgrade head --sql`)."""
    context.configure(dialect_name=make_url(url).get_backend_name(), literal_binds=True, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


def migrate(url: str) -> None:
    engine = make_engine(url).execution_options(begin_immediate=True)
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                _migrate_sqlite(connection)
            else:
                _migrate_postgres(connection)
    finally:
        engine.dispose()


def _migrate_postgres(connection: Connection) -> None:
    with connection.begin():
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": UPGRADE_LOCK})
        # Better to fail than to stop everything behind a lock that we wait for.
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        _run(connection)


def _migrate_sqlite(connection: Connection) -> None:
    # Replacing a table that others refer to would break their foreign keys for a moment; they are checked at the end.
    # The driver's own connection, because this pragma does nothing inside a transaction.
    driver = connection.connection.driver_connection
    assert driver is not None
    driver.execute("PRAGMA foreign_keys = OFF")
    with connection.begin():
        _run(connection)
        broken = connection.execute(text("PRAGMA foreign_key_check")).all()
        if broken:
            raise RuntimeError(f"the migration breaks foreign keys: {broken[:5]}")


def _run(connection: Connection) -> None:
    context.configure(connection=connection, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


address = context.config.attributes.get("url") or Settings().database_url
if context.is_offline_mode():
    write_statements(address)
else:
    migrate(address)
