"""The memory: everything that was tried, measured, decided and learned.

Writes are insert-or-ignore on keys that the loop determines beforehand, so a node that runs again
after a crash changes nothing. One method is one transaction; once it returns, it is on disk.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any, Self, TypeVar

import sqlalchemy
from sqlalchemy import Connection, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Engine as Database
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlmodel import Session, SQLModel, col, select

from slipstream.evaluation.acceptance import Cause, Evidence, Judgement, Verdict
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.gates import DocumentScore
from slipstream.evaluation.home import data_dir, make_dir
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.prompts import Split

from .records import Experiment, Finding, Hypothesis, Run, RunState, Variant
from .schema import bring_up_to_date
from .tables import (
    ExperimentRow,
    FindingRow,
    HypothesisRow,
    MeasurementRow,
    RunRow,
    ScoreRow,
    VariantRow,
    VerdictRow,
)

_R = TypeVar("_R")


class Memory:
    """A database of runs, variants, hypotheses, experiments, measurements and findings."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._database = _connect(url)
        with self._connection() as connection:
            bring_up_to_date(connection, url)

    def close(self) -> None:
        """Release the connections."""
        self._database.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Runs

    def add_run(self, run: Run) -> None:
        """Record that a run begins."""
        self._insert(RunRow, asdict(run))

    def update_run(self, run: str, **changes: Any) -> None:
        """Change fields of a run (state, spent_s, delta, bandwidth_gbps)."""
        with self._session() as session:
            row = session.get_one(RunRow, run)
            for name, value in changes.items():
                setattr(row, name, value)
            session.commit()

    def run(self, run: str) -> Run:
        """Return one run.

        Raises:
            SlipstreamError: no such run.
        """
        with self._session() as session:
            row = session.get(RunRow, run)
            if row is None:
                known = session.exec(select(RunRow.id).order_by(col(RunRow.started_at).desc()))
                names = ", ".join(known.fetchmany(5)) or "none yet"
                raise SlipstreamError(f"unknown run {run!r}; the latest runs are: {names}")
            return _run(row)

    def runs(self) -> list[Run]:
        """Return all runs, oldest first."""
        with self._session() as session:
            rows = session.exec(select(RunRow).order_by(col(RunRow.started_at)))
            return [_run(row) for row in rows]

    # Variants and hypotheses

    def add_variant(self, variant: Variant) -> None:
        """Record a variant; the first record of a content hash stays."""
        self._insert(VariantRow, asdict(variant))

    def variant(self, variant: str) -> Variant:
        """Return a variant by its name or a unique beginning of it.

        Raises:
            SlipstreamError: none, or several.
        """
        columns = SQLModel.metadata.tables["variants"].columns
        query = sqlalchemy.select(*columns)
        begins = columns["id"].startswith(variant, autoescape=True)
        with _readable(self.url), self._database.connect() as connection:
            rows = connection.execute(query.where(columns["id"] == variant)).mappings().all()
            rows = rows or connection.execute(query.where(begins).limit(2)).mappings().all()
        if len(rows) != 1:
            what = "several variants begin with" if rows else "unknown variant"
            raise SlipstreamError(f"{what} {variant!r}; `slipstream leaderboard` lists them")
        return Variant(**rows[0])

    def variants(self) -> list[Variant]:
        """Return all variants, oldest first."""
        columns = SQLModel.metadata.tables["variants"].columns
        query = sqlalchemy.select(*columns).order_by(col(VariantRow.created_at))
        with self._session() as session:
            return [Variant(**row) for row in session.execute(query).mappings()]

    def add_hypotheses(self, hypotheses: Sequence[Hypothesis]) -> None:
        """Write a round's hypotheses down: all of them, or none if that fails."""
        self._insert(HypothesisRow, *(asdict(hypothesis) for hypothesis in hypotheses))

    def hypothesis(self, hypothesis: str) -> Hypothesis:
        """Return one hypothesis."""
        with self._session() as session:
            return _plain(Hypothesis, session.get_one(HypothesisRow, hypothesis))

    def hypotheses(self, run: str) -> list[Hypothesis]:
        """Return the hypotheses of a run, in order."""
        columns = SQLModel.metadata.tables["hypotheses"].columns
        query = sqlalchemy.select(*columns).where(col(HypothesisRow.run) == run)
        with self._session() as session:
            rows = session.execute(query.order_by(col(HypothesisRow.id))).mappings()
            return [Hypothesis(**row) for row in rows]

    # Experiments

    def add_experiment(self, experiment: Experiment) -> None:
        """Record that an experiment begins."""
        self._insert(ExperimentRow, asdict(experiment))

    def experiment(self, experiment: str) -> Experiment | None:
        """Return one experiment with its verdict, or None."""
        found = self._experiments(ExperimentRow.id == experiment)
        return found[0] if found else None

    def experiments(
        self, *, run: str | None = None, variant: str | None = None
    ) -> list[Experiment]:
        """Return experiments with their verdicts, oldest first."""
        conditions = [True if run is None else ExperimentRow.run == run]
        conditions.append(True if variant is None else ExperimentRow.variant == variant)
        return self._experiments(*(c for c in conditions if c is not True))

    def experiments_on(self, challenge: str, machine: str) -> list[Experiment]:
        """Return all experiments on one challenge and kind of machine, oldest first."""
        with self._session() as session:
            runs = session.exec(
                select(RunRow.id).where(RunRow.challenge == challenge, RunRow.machine == machine)
            ).all()
        return self._experiments(col(ExperimentRow.run).in_(runs)) if runs else []

    def _experiments(self, *conditions: Any) -> list[Experiment]:
        # Plain columns: this is the query that planning waits for, and rows as objects cost thrice.
        query = (
            sqlalchemy.select(*_EXPERIMENT_COLUMNS)
            .select_from(ExperimentRow)
            .join(VerdictRow, isouter=True)
            .where(*conditions)
            .order_by(col(ExperimentRow.started_at), col(ExperimentRow.id))
        )
        with self._session() as session:
            return [_experiment(row) for row in session.execute(query).mappings()]

    # Measurements

    def add_pair(self, experiment: str, pair: Pair) -> None:
        """Record a measured pair; the first record of a stage's index stays."""
        self._insert(
            MeasurementRow, {"experiment": experiment, "measured_at": time.time(), **asdict(pair)}
        )

    def add_score(self, experiment: str, split: Split, score: DocumentScore) -> None:
        """Record a scored document; the first record stays."""
        self._insert(
            ScoreRow,
            {"experiment": experiment, "split": split, "measured_at": time.time(), **asdict(score)},
        )

    def evidence(self, experiment: str) -> Evidence:
        """Return everything measured for an experiment so far, in order."""
        pairs_query, scores_query = (
            sqlalchemy.select(*columns).where(columns["experiment"] == experiment)
            for columns in (_PAIR_COLUMNS, _SCORE_COLUMNS)
        )
        pairs_query = pairs_query.order_by(_PAIR_COLUMNS["stage"], _PAIR_COLUMNS["index"])
        with _readable(self.url), self._database.connect() as connection:
            measured = connection.execute(pairs_query).mappings().all()
            scored = connection.execute(scores_query).mappings().all()
        pairs = tuple(
            Pair(**{name: row[name] for name in _PAIR_FIELDS} | {"stage": Stage(row["stage"])})
            for row in measured
        )
        scores = {
            split: tuple(
                DocumentScore(**{name: row[name] for name in _SCORE_FIELDS})
                for row in scored
                if row["split"] == split
            )
            for split in Split
        }
        return Evidence(pairs, scores)

    # What came out

    def record(
        self, experiment: str, judgement: Judgement, finding: Finding | None, spent_s: float
    ) -> None:
        """Write verdict, finding and the run's time in one transaction; again changes nothing.

        Args:
            spent_s: the run's time so far.
        """
        gain, quality = judgement.gain, judgement.quality
        row = {
            "experiment": experiment,
            "verdict": judgement.verdict,
            "cause": judgement.cause,
            "reason": judgement.reason,
            "gain": gain.mean if gain else None,
            "gain_stderr": gain.stderr if gain else None,
            "num_pairs": gain.num_pairs if gain else None,
            "tps": judgement.tps,
            "ppl": quality.ppl if quality else None,
            "ppl_rise": quality.ppl_rise if quality else None,
            "ppl_rise_high": quality.ppl_rise_high if quality else None,
            "kl": quality.kl if quality else None,
            "top1": quality.top1 if quality else None,
            "decided_at": time.time(),
        }
        with self._session() as session:
            session.exec(self._or_ignore(VerdictRow, row))
            if finding is not None:
                session.exec(self._or_ignore(FindingRow, asdict(finding)))
            run = session.get_one(RunRow, session.get_one(ExperimentRow, experiment).run)
            run.spent_s = max(run.spent_s, spent_s)
            session.commit()

    def findings(self) -> list[Finding]:
        """Return everything learned, oldest first."""
        with self._session() as session:
            rows = session.exec(select(FindingRow).order_by(col(FindingRow.learned_at)))
            return [_plain(Finding, row) for row in rows]

    # How

    def _insert(self, table: type[SQLModel], *rows: dict[str, Any]) -> None:
        with _readable(self.url), self._database.begin() as connection:
            for row in rows:
                connection.execute(self._or_ignore(table, row))

    def _or_ignore(self, table: type[SQLModel], values: dict[str, Any]) -> Any:
        """Build an insert that leaves an existing row of the same key as it is."""
        columns = table.__table__.columns  # type: ignore[attr-defined]  # SQLModel sets it
        row = {name: value for name, value in values.items() if name in columns}
        insert = sqlite.insert if self._database.dialect.name == "sqlite" else postgresql.insert
        return insert(table).values(**row).on_conflict_do_nothing()

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with _readable(self.url), Session(self._database) as session:
            yield session

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        with _readable(self.url), self._database.connect() as connection:
            yield connection


def default_url() -> str:
    """Return `SLIPSTREAM_MEMORY`, or the URL of the memory in the user's data folder."""
    return os.environ.get("SLIPSTREAM_MEMORY") or f"sqlite:///{make_dir(data_dir())}/memory.db"


def open_memory(url: str | None = None) -> Memory:
    """Open a memory, creating or migrating it if needed.

    Args:
        url: `sqlite:///FILE` or `postgresql+psycopg://…`; the user's own SQLite file by default.

    Raises:
        SlipstreamError: it can't be opened, or a newer slipstream wrote it.
    """
    return Memory(url or default_url())


def _connect(url: str) -> Database:
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
def _readable(url: str) -> Iterator[None]:
    """Turn the database's errors into one line."""
    try:
        yield
    except (OperationalError, DatabaseError) as error:
        reason = str(error.orig).splitlines()[0] if error.orig else str(error)
        hints = {
            "full": "free some space",
            "readonly": "make it writable",
            "unable to open": "check the path and its permissions",
            "not a database": "it is some other file",
        }
        hint = next((hint for sign, hint in hints.items() if sign in reason), "nothing was lost")
        raise SlipstreamError(f"memory {url}: {reason}; {hint}") from error


def _plain(record: type[_R], row: SQLModel) -> _R:
    return record(**row.model_dump())


def _run(row: RunRow) -> Run:
    return Run(**{**row.model_dump(), "state": RunState(row.state)})


_PAIR_FIELDS = [field.name for field in fields(Pair)]
_SCORE_FIELDS = [field.name for field in fields(DocumentScore)]
_PAIR_COLUMNS = SQLModel.metadata.tables["measurements"].columns
_SCORE_COLUMNS = SQLModel.metadata.tables["scores"].columns
_VERDICT_COLUMNS = [c for c in SQLModel.metadata.tables["verdicts"].columns if not c.primary_key]
_EXPERIMENT_COLUMNS = [*SQLModel.metadata.tables["experiments"].columns, *_VERDICT_COLUMNS]


def _experiment(row: Mapping[Any, Any]) -> Experiment:
    if row["verdict"] is None:
        return Experiment(**{**row, "reason": ""})
    decided = {"verdict": Verdict(row["verdict"]), "cause": Cause(row["cause"])}
    return Experiment(**{**row, **decided})


def latest_run(runs: Sequence[Run]) -> Run:
    """Return the newest of `runs`.

    Raises:
        SlipstreamError: there is none.
    """
    if not runs:
        raise SlipstreamError("no runs yet; `slipstream run` starts one")
    return max(runs, key=lambda run: run.started_at)
