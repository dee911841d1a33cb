"""Connections: SQLite in WAL mode or Postgres, with the database's errors in one line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import create_engine, event
from sqlalchemy.engine import Engine as Database
from sqlalchemy.exc import DatabaseError, OperationalError

from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.home import data_dir, make_dir

_HINTS = {
    "full": "free some space",
    "readonly": "make it writable",
    "unable to open": "check the path and its permissions",
    "not a database": "it is some other file",
}


def default_url() -> str:
    """Return `SLIPSTREAM_MEMORY`, or the URL of the memory in the user's data folder."""
    return os.environ.get("SLIPSTREAM_MEMORY") or f"sqlite:///{make_dir(data_dir())}/memory.db"


def connect(url: str) -> Database:
    """Return a pool of connections to `sqlite:///FILE` or `postgresql+psycopg://…`.

    Raises:
        SlipstreamError: another kind of URL, or a driver that isn't installed.
    """
    if not url.startswith(("sqlite:///", "postgresql+psycopg://")):
        raise SlipstreamError(f"memory {url!r}: write sqlite:///FILE or postgresql+psycopg://…")
    try:
        database = create_engine(url, connect_args={"timeout": 30} if "sqlite" in url else {})
    except ModuleNotFoundError as error:
        raise SlipstreamError(
            f"memory {url!r}: needs {error.name}; pip install 'slipstream-llm[postgres]'"
        ) from error
    if database.dialect.name == "sqlite":
        event.listen(database, "connect", _configure_sqlite)
    return database


def _configure_sqlite(connection: Any, _record: object) -> None:
    """Readers don't block the writer (WAL); a commit outlives the process, however it is killed.

    In WAL mode, synchronous=NORMAL spares a disk flush per commit. A power cut can take the last
    commits with it, never the file's integrity; the loop then measures those again.
    """
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


@contextmanager
def readable_errors(url: str) -> Iterator[None]:
    """Turn the database's errors into one line."""
    try:
        yield
    except (OperationalError, DatabaseError) as error:
        reason = str(error.orig).splitlines()[0] if error.orig else str(error)
        hint = next((hint for sign, hint in _HINTS.items() if sign in reason), "nothing was lost")
        raise SlipstreamError(f"memory {url}: {reason}; {hint}") from error
