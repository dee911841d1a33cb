"""Full text over findings, by the database's own index: FTS5 in SQLite, tsvector in Postgres."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, column, select, table, text

from slipstream.evaluation.errors import SlipstreamError

from .database import Database
from .queries import TABLES

_FINDINGS, _EXPERIMENTS = TABLES["findings"], TABLES["experiments"]
_VERDICTS, _RUNS = TABLES["verdicts"], TABLES["runs"]
_MAX_WORDS = 16


@dataclass(frozen=True)
class Hit:
    """A finding with the experiment it comes from.

    Attributes:
        gain: mean log ratio over the rival; None if it never ran.
    """

    experiment: str
    lever: str
    value: str
    verdict: str
    gain: float | None
    mechanism: str
    reopen: str
    challenge: str
    machine: str
    family: str
    unsafe: bool
    learned_at: float


def search(
    database: Database,
    words: str = "",
    *,
    lever: str | None = None,
    verdict: str | None = None,
    family: str | None = None,
    machine: str | None = None,
    challenge: str | None = None,
    since: float = 0.0,
    limit: int = 20,
) -> list[Hit]:
    """Return findings that hold all `words`, best match first; without words the latest first.

    Raises:
        SlipstreamError: more words than anybody means.
    """
    asked = [word for word in words.replace('"', " ").split() if any(map(str.isalnum, word))]
    if len(asked) > _MAX_WORDS:
        raise SlipstreamError(f"{len(asked)} words to search for: {_MAX_WORDS} are enough")
    names = ("experiment", "lever", "value", "mechanism", "reopen", "unsafe", "learned_at")
    query: Select[Any] = (
        select(
            *(_FINDINGS.c[name] for name in names),
            _VERDICTS.c.verdict,
            _VERDICTS.c.gain,
            *(_RUNS.c[name] for name in ("challenge", "machine", "family")),
        )
        .select_from(_FINDINGS)
        .join(_EXPERIMENTS, _EXPERIMENTS.c.id == _FINDINGS.c.experiment)
        .join(_VERDICTS, _VERDICTS.c.experiment == _FINDINGS.c.experiment)
        .join(_RUNS, _RUNS.c.id == _EXPERIMENTS.c.run)
    )
    for held, wanted in (
        (_FINDINGS.c.lever, lever),
        (_VERDICTS.c.verdict, verdict),
        (_RUNS.c.family, family),
        (_RUNS.c.machine, machine),
        (_RUNS.c.challenge, challenge),
    ):
        if wanted is not None:
            query = query.where(held == wanted)
    if since:
        query = query.where(_FINDINGS.c.learned_at > since)
    parameters: dict[str, str] = {}
    if asked:
        query, parameters = _matching(query, asked, database.dialect)
    query = query.order_by(_FINDINGS.c.learned_at.desc(), _FINDINGS.c.experiment).limit(limit)
    rows = database.read(lambda c: c.execute(query, parameters).mappings().all())
    return [Hit(**row) for row in rows]


def _matching(
    query: Select[Any], asked: list[str], dialect: str
) -> tuple[Select[Any], dict[str, str]]:
    if dialect == "sqlite":
        index = table("findings_text", column("experiment"), column("rank"))
        quoted = " ".join(f'"{word}"' for word in asked)
        query = query.join(index, index.c.experiment == _FINDINGS.c.experiment)
        query = query.where(text("findings_text MATCH :words")).order_by(index.c.rank)
        return query, {"words": quoted}
    words = "plainto_tsquery('simple', :words)"
    query = query.where(text(f"findings.full_text @@ {words}"))
    query = query.order_by(text(f"ts_rank(findings.full_text, {words}) DESC"))
    return query, {"words": " ".join(asked)}
