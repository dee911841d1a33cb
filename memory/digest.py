"""What happened since: for somebody who comes back, or an agent that begins."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from slipstream.evaluation.acceptance import Cause, Verdict

from .board import Board, Post
from .queries import TABLES
from .search import Hit, search
from .store import Memory

_VERDICTS = TABLES["verdicts"]
_LATEST = 20


@dataclass(frozen=True)
class Digest:
    """What is new since a time; lists are the latest first, at most 20 each.

    Attributes:
        verdicts: verdict → how many experiments ended so.
        gains: what was kept for its gain.
        findings: everything learned.
    """

    since: float
    verdicts: dict[str, int]
    gains: list[Hit]
    findings: list[Hit]
    posts: list[Post]


def digest(memory: Memory, since: float) -> Digest:
    """Return what happened after `since`, seconds since the epoch."""
    counted = (
        select(_VERDICTS.c.verdict, func.count())
        .where(_VERDICTS.c.decided_at > since, _VERDICTS.c.cause != Cause.START)
        .group_by(_VERDICTS.c.verdict)
    )
    rows: Any = memory.database.read(lambda connection: connection.execute(counted).all())
    return Digest(
        since=since,
        verdicts={str(row[0]): int(row[1]) for row in sorted(rows)},
        gains=search(memory.database, verdict=Verdict.KEPT, since=since, limit=_LATEST),
        findings=search(memory.database, since=since, limit=_LATEST),
        posts=Board(memory.database, "digest").posts(since=since, limit=_LATEST),
    )
