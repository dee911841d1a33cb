"""The schema's version: migrates an older database forward, refuses a newer one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from sqlalchemy import Connection, inspect, text

from slipstream.evaluation.errors import SlipstreamError

from . import derive
from .database import Database

HEAD = "0005"
_MIGRATIONS = Path(__file__).resolve().parent / "migrations"


def bring_up_to_date(database: Database) -> None:
    """Migrate the database to `HEAD`.

    Raises:
        SlipstreamError: it was written by a newer slipstream.
    """
    version = database.read(_version)
    if version == HEAD:
        return
    if version is not None and version > HEAD:
        raise SlipstreamError(
            f"memory {database}: its schema is {version}, this slipstream knows up to {HEAD}; "
            "upgrade slipstream or use another --memory"
        )

    def work(connection: Connection) -> None:
        with _one_at_a_time(connection):
            if _version(connection) != HEAD:
                _migrate(connection)
                derive.rebuild(connection)
                connection.commit()

    database.read(work)  # alembic has transactions of its own


@contextmanager
def _one_at_a_time(connection: Connection) -> Iterator[None]:
    """Keep other processes from migrating the same database now."""
    if connection.dialect.name == "sqlite":
        with FileLock(f"{connection.engine.url.database}.migrating"):
            yield
    else:
        connection.execute(text("SELECT pg_advisory_xact_lock(7358127)"))
        yield


def _migrate(connection: Connection) -> None:
    # Alembic is imported only when there is something to migrate: it doubles the start-up time.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    row = connection.execute(text("SELECT version_num FROM alembic_version")).first()
    return str(row[0]) if row else None
