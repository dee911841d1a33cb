"""What people tell a run while it goes on: directions, and answers to what waits for approval."""

import secrets
import time
from dataclasses import dataclass

from sqlalchemy import insert, select

from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.redaction import redact

from .database import Database
from .queries import TABLES
from .store import Memory

MAX_TEXT = 4000
_DIRECTIONS, _APPROVALS = TABLES["directions"], TABLES["approvals"]


@dataclass(frozen=True)
class Direction:
    """Something that a researcher told a run."""

    author: str
    text: str
    said_at: float


@dataclass(frozen=True)
class Approval:
    """A person's answer to a change that waited for it."""

    experiment: str
    author: str
    text: str
    approved: bool
    said_at: float


def steer(memory: Memory, run: str, author: str, text: str) -> Direction:
    """Tell a run something; its planner reads it before the next plan.

    Raises:
        SlipstreamError: no such run, or nothing said, or too much.
    """
    name, said = memory.run(run).id, redact(text).strip()
    if not said or len(said) > MAX_TEXT:
        raise SlipstreamError(
            f"a direction of {len(said)} characters: write between 1 and {MAX_TEXT}"
        )
    direction = Direction(author, said, time.time())
    row = {"id": secrets.token_hex(8), "run": name, **vars(direction)}
    memory.database.write(lambda connection: connection.execute(insert(_DIRECTIONS), row))
    return direction


def directions(database: Database, run: str) -> list[Direction]:
    """Return what a run was told, oldest first."""
    query = select(_DIRECTIONS).where(_DIRECTIONS.c.run == run).order_by(_DIRECTIONS.c.said_at)
    rows = database.read(lambda connection: connection.execute(query).mappings().all())
    return [Direction(row["author"], row["text"], row["said_at"]) for row in rows]


def answer(
    memory: Memory, experiment: str, author: str, *, approved: bool, text: str = ""
) -> Approval:
    """Approve or refuse an experiment that waits before it is measured.

    Raises:
        SlipstreamError: no such experiment, or it was judged already.
    """
    found = memory.experiment(experiment)
    if found is None:
        raise SlipstreamError(
            f"unknown experiment {experiment!r}; `slipstream show RUN` lists them"
        )
    if found.verdict is not None:
        raise SlipstreamError(f"experiment {experiment}: it was judged already, {found.verdict}")
    given = Approval(experiment, author, redact(text)[:MAX_TEXT], approved, time.time())
    row = {"id": secrets.token_hex(8), **vars(given)}
    memory.database.write(lambda connection: connection.execute(insert(_APPROVALS), row))
    return given


def approval(database: Database, experiment: str) -> Approval | None:
    """Return the first answer about an experiment, or None while nobody has given one."""
    query = select(_APPROVALS).where(_APPROVALS.c.experiment == experiment)
    query = query.order_by(_APPROVALS.c.said_at).limit(1)
    row = database.read(lambda connection: connection.execute(query).mappings().first())
    if row is None:
        return None
    return Approval(**{name: held for name, held in row.items() if name != "id"})
