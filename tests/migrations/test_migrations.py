"""Tables and migrations agree, on every database, in both directions."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, Connection, inspect, make_url, text

from jobs.database import make_engine
from jobs.tables import Base
from migrations.upgrade import Revisions, alembic_config, current_and_head, upgrade_database
from tests.conftest import new_postgres_database

SCRIPTS = ScriptDirectory.from_config(alembic_config("sqlite:///unused"))
REVISIONS = [script.revision for script in reversed(list(SCRIPTS.walk_revisions()))]


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of each kind that a test may leave as it likes, with all tables."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path / 'winnow.sqlite'}"
        else:
            url = stack.enter_context(new_postgres_database(request.getfixturevalue("postgres_url")))
        upgrade_database(url)
        yield url


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    engine = make_engine(database_url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names()) - {"alembic_version"}


def test_there_is_one_head() -> None:
    assert len(SCRIPTS.get_heads()) == 1


def test_models_equal_migrations(connection: Connection) -> None:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    assert compare_metadata(context, Base.metadata) == []


def test_checked_values_equal_migrations(sqlite_database_url: str) -> None:
    expected = {
        (table.name, str(constraint.name), str(constraint.sqltext))
        for table in Base.metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }
    engine = make_engine(sqlite_database_url)
    with engine.connect() as connection:
        found = {
            (table, constraint["name"], constraint["sqltext"])
            for table in tables(connection)
            for constraint in inspect(connection).get_check_constraints(table)
        }
    engine.dispose()
    assert found == expected


def test_checks_of_values_survive_a_step_down(sqlite_database_url: str) -> None:
    def checks() -> set[str | None]:
        engine = make_engine(sqlite_database_url)
        with engine.connect() as connection:
            found = {constraint["name"] for constraint in inspect(connection).get_check_constraints("jobs")}
        engine.dispose()
        return found

    before = checks()
    command.downgrade(alembic_config(sqlite_database_url), "first_tables")
    assert checks() == before


def test_every_step_goes_up_and_down_and_up_again(database_url: str, connection: Connection) -> None:
    config = alembic_config(database_url)
    connection.close()
    command.downgrade(config, "base")
    for revision in REVISIONS:
        command.upgrade(config, revision)
        command.downgrade(config, "-1")
        command.upgrade(config, revision)
    assert current_and_head(database_url).is_current


def test_downgrade_to_base_leaves_no_table(database_url: str) -> None:
    command.downgrade(alembic_config(database_url), "base")
    engine = make_engine(database_url)
    with engine.connect() as connection:
        assert tables(connection) == set()
    engine.dispose()


def test_upgrade_is_harmless_to_repeat(database_url: str) -> None:
    upgrade_database(database_url)
    upgrade_database(database_url)
    assert current_and_head(database_url).is_current


def test_an_empty_database_has_no_revision(tmp_path: Path) -> None:
    found = current_and_head(f"sqlite:///{tmp_path / 'new.sqlite'}")
    assert found == Revisions(current=None, head=REVISIONS[-1])
    assert not found.is_current


def test_two_processes_may_upgrade_at_once(database_url: str) -> None:
    command.downgrade(alembic_config(database_url), "base")
    with ThreadPoolExecutor(2) as pool:
        # Two programs, because Alembic keeps what it works on in globals.
        list(pool.map(_upgrade_in_another_process, [database_url, database_url]))
    assert current_and_head(database_url).is_current


def test_a_failed_migration_leaves_the_database_as_it_was(database_url: str) -> None:
    command.downgrade(alembic_config(database_url), "base")
    engine = make_engine(database_url)
    with engine.execution_options(begin_immediate=True).begin() as connection:
        connection.execute(text("CREATE TABLE outbox (id INTEGER)"))  # in the way of the migration, near its end
    with pytest.raises(Exception, match="outbox"):
        upgrade_database(database_url)
    with engine.connect() as connection:
        assert tables(connection) == {"outbox"}
    engine.dispose()


def test_offline_mode_writes_the_sql(capsys: pytest.CaptureFixture[str], database_url: str) -> None:
    dialect = make_url(database_url).get_backend_name()
    command.upgrade(alembic_config(f"{dialect}://"), "head", sql=True)
    assert "CREATE TABLE jobs" in capsys.readouterr().out


def test_a_password_with_percent_signs_reaches_the_driver() -> None:
    assert alembic_config("postgresql://u:a%40b@host/db").attributes["url"] == "postgresql://u:a%40b@host/db"


def _upgrade_in_another_process(url: str) -> None:
    code = "import sys; from migrations.upgrade import upgrade_database; upgrade_database(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, url], check=True)
