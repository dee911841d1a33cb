"""Checkpoints of a run in SQLite: only the latest, which is all that resuming needs."""

import sqlite3
from pathlib import Path

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver

from .state import CHECKPOINT_TYPES

# Each step stores the whole state, and the saver can't prune. The comparison is with <>, not <:
# checkpoint ids follow the clock, which may have been set back between two processes.
_KEEP_LATEST = """
CREATE TRIGGER IF NOT EXISTS keep_latest AFTER INSERT ON checkpoints BEGIN
  DELETE FROM writes WHERE thread_id = NEW.thread_id AND checkpoint_ns = NEW.checkpoint_ns
    AND checkpoint_id <> NEW.checkpoint_id;
  DELETE FROM checkpoints WHERE thread_id = NEW.thread_id AND checkpoint_ns = NEW.checkpoint_ns
    AND checkpoint_id <> NEW.checkpoint_id;
END
"""


def open_checkpoints(path: Path) -> SqliteSaver:
    """Open or create the checkpoint file of a run; close it with `saver.conn.close()`."""
    connection = sqlite3.connect(path, check_same_thread=False, timeout=30)
    saver = SqliteSaver(
        connection, serde=JsonPlusSerializer(allowed_msgpack_modules=CHECKPOINT_TYPES)
    )
    saver.setup()
    connection.execute("PRAGMA synchronous=NORMAL")  # in WAL mode safe against SIGKILL
    connection.execute(_KEEP_LATEST)
    return saver
