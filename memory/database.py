"""Connections: SQLite in WAL mode or Postgres, with the database's errors in one line.

A lost connection is retried: a Postgres that restarts, or a network that hiccups, costs seconds and
not the run. So the work of a transaction must be idempotent: whether a commit that was cut off has
happened can't be known, only tried again.
"""

import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Float, create_engine, event, literal_column, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.home import data_dir, make_dir

_Result = TypeVar("_Result")
_HINTS = {
    "full": "free some space",
    "No space left": "free some space",
    "readonly": "make it writable",
    "read-only": "make it writable",
    "unable to open": "check the path and its permissions",
    "not a database": "it is some other file",
    "locked": "another process holds it; try again",
    "connection refused": "is the server running?",
    "Connection refused": "is the server running?",
    "authentication failed": "check user and password",
    "connection to server": "is the server running?",
}
# Signs of a connection or a moment, not of a statement: the same again may well succeed.
_PASSING = (
    "server closed the connection",
    "terminating connection",
    "connection is lost",
    "the connection is closed",
    "connection is bad",
    "connection to server",
    "consuming input failed",
    "could not receive data",
    "starting up",
    "shutting down",
    "connection refused",
    "deadlock detected",
    "could not serialize",
)
_PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # a restart of Postgres takes seconds
# Seconds since the epoch by the database's clock, one for all machines that share a memory.
_NOW = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "(extract(epoch from clock_timestamp())::float8)",
}


def default_url() -> str:
    """Return `SLIPSTREAM_MEMORY`, or the URL of the memory in the user's data folder."""
    return os.environ.get("SLIPSTREAM_MEMORY") or f"sqlite:///{make_dir(data_dir())}/memory.db"


class Database:
    """A pool of connections to `sqlite:///FILE` or `postgresql+psycopg://…`.

    Raises:
        SlipstreamError: another kind of URL, or a driver that isn't installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._reached = False
        if not url.startswith(("sqlite:///", "postgresql+psycopg://")):
            raise SlipstreamError(f"memory {url!r}: write sqlite:///FILE or postgresql+psycopg://…")
        arguments = {"timeout": 30} if "sqlite" in url else {"connect_timeout": 10}
        try:
            self.engine: Engine = create_engine(
                url,
                connect_args=arguments,
                execution_options={"preserve_rowcount": True},  # of inserts, too
            )
        except ModuleNotFoundError as error:
            raise SlipstreamError(
                f"memory {self}: needs {error.name}; pip install 'slipstream-llm[postgres]'"
            ) from error
        self.dialect = self.engine.dialect.name
        if self.dialect == "sqlite":
            event.listen(self.engine, "connect", _configure_sqlite)

    def __str__(self) -> str:
        """The URL without its password."""
        head, at, tail = self.url.rpartition("@")
        user, colon, _ = head.rpartition(":")
        return f"{user}:***@{tail}" if at and colon and "//" in user else self.url

    @property
    def now(self) -> ColumnElement[float]:
        """The database's clock, as an expression: seconds since the epoch."""
        return literal_column(_NOW[self.dialect], Float)

    def close(self) -> None:
        """Release the connections."""
        self.engine.dispose()

    def read(self, work: Callable[[Connection], _Result]) -> _Result:
        """Run `work`, which only reads, on a connection; again if the connection is lost."""
        return self._persist(lambda: self._reading(work))

    def write(self, work: Callable[[Connection], _Result]) -> _Result:
        """Run `work` in one transaction; again if the connection is lost.

        Raises:
            SlipstreamError: the database refuses, or stays away for half a minute.
        """
        return self._persist(lambda: self._writing(work))

    def lock(self, connection: Connection, what: str) -> None:
        """Let no other transaction that asks for the same lock go on before this one has ended.

        In SQLite there is one writer at a time anyway, once it has begun to write.
        """
        if self.dialect == "postgresql":
            number = zlib.crc32(what.encode())
            connection.execute(text(f"SELECT pg_advisory_xact_lock({number})"))

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Give a connection in one long transaction, which is not tried again."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise self._readable(error) from error

    def _reading(self, work: Callable[[Connection], _Result]) -> _Result:
        with self.engine.connect() as connection:
            return work(connection)

    def _writing(self, work: Callable[[Connection], _Result]) -> _Result:
        with self.engine.begin() as connection:
            return work(connection)

    def _persist(self, attempt: Callable[[], _Result]) -> _Result:
        pauses_s = iter(_PAUSES_S)
        while True:
            try:
                result = attempt()
            except DBAPIError as error:
                # What was never there is not waited for: it is rather a mistyped URL.
                pause_s = next(pauses_s, None)
                if pause_s is None or not self._reached or not _is_passing(error):
                    raise self._readable(error) from error
                time.sleep(pause_s)
            else:
                self._reached = True
                return result

    def _readable(self, error: DBAPIError) -> SlipstreamError:
        reason = str(error.orig).strip().splitlines()[0] if error.orig else str(error)
        hint = next((hint for sign, hint in _HINTS.items() if sign in reason), "nothing was lost")
        return SlipstreamError(f"memory {self}: {reason}; {hint}")


def _is_passing(error: DBAPIError) -> bool:
    text = str(error.orig)
    return error.connection_invalidated or any(sign in text for sign in _PASSING)


def _configure_sqlite(connection: Any, _record: object) -> None:
    """Readers don't block the writer (WAL); a commit outlives the process, however it is killed.

    In WAL mode, synchronous=NORMAL spares a disk flush per commit. A power cut can take the last
    commits with it, never the file's integrity; the loop then measures those again.
    """
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
