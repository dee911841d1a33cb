"""The memory: everything that was tried, measured, decided and learned.

Writes are insert-or-ignore on keys that the loop determines beforehand, so a node that runs again
after a crash changes nothing. One method is one transaction; once it returns, it is on disk.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Executable, Select

from slipstream.evaluation.acceptance import Cause, Evidence, Judgement, Verdict
from slipstream.evaluation.audits import Audit
from slipstream.evaluation.conditions import Conditions
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.gates import DocumentScore
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.prompts import Split
from slipstream.evaluation.redaction import redact_all

from . import derive, queries
from .claims import Claim, Claims
from .database import Database, default_url
from .records import (
    Experiment,
    Finding,
    Hypothesis,
    Observation,
    Run,
    Rung,
    RunState,
    Variant,
)
from .schema import bring_up_to_date

_Record = TypeVar("_Record", Variant, Hypothesis, Experiment)
_Row = Mapping[Any, Any]


class Memory:
    """A database of runs, variants, hypotheses, experiments, measurements and findings."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.database = Database(url)
        self.claims = Claims(self.database)
        # What never changes once it is written need not be read twice.
        self._variants: dict[str, Variant] = {}
        self._hypotheses: dict[str, Hypothesis] = {}
        self._decided: dict[str, Experiment] = {}
        bring_up_to_date(self.database)

    def close(self) -> None:
        """Release the connections."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Runs

    def add_run(self, run: Run) -> None:
        """Record that a run begins."""
        self._insert("runs", asdict(run))

    def update_run(self, run: str, **changes: Any) -> None:
        """Change fields of a run (state, spent_s, delta, bandwidth_gbps).

        Raises:
            SlipstreamError: no such run.
        """
        statement = queries.change_run(run, changes)
        if not self.database.write(lambda c: c.execute(statement).rowcount):
            raise SlipstreamError(f"unknown run {run!r}; nothing was changed")

    def run(self, run: str) -> Run:
        """Return one run.

        Raises:
            SlipstreamError: no such run.
        """
        found = self.find_run(run)
        if found is None:
            names = ", ".join(row["id"] for row in self._rows(queries.LATEST_RUNS)) or "none yet"
            raise SlipstreamError(f"unknown run {run!r}; the latest runs are: {names}")
        return found

    def find_run(self, run: str) -> Run | None:
        """Return one run, or None."""
        rows = self._rows(queries.RUN, run=run)
        return _run(rows[0]) if rows else None

    def runs(self) -> list[Run]:
        """Return all runs, oldest first."""
        return [_run(row) for row in self._rows(queries.RUNS)]

    # Variants and hypotheses

    def add_variant(self, variant: Variant) -> None:
        """Record a variant; the first record of a content hash stays."""
        self._insert("variants", asdict(variant))

    def variant(self, variant: str) -> Variant:
        """Return a variant by its name or a unique beginning of it.

        Raises:
            SlipstreamError: none, or several.
        """
        if variant in self._variants:
            return self._variants[variant]
        rows = self._rows(queries.VARIANTS, ids=[variant])
        rows = rows or self._rows(queries.variants_beginning_with(variant))
        if len(rows) != 1:
            what = "several variants begin with" if rows else "unknown variant"
            raise SlipstreamError(f"{what} {variant!r}; `slipstream leaderboard` lists them")
        found = Variant(**rows[0])
        return self._variants.setdefault(found.id, found)

    def variants(self) -> list[Variant]:
        """Return all variants, oldest first."""
        ids = self._ids(queries.VARIANT_IDS)
        return self._records(ids, self._variants, queries.VARIANTS, _variant)

    def add_hypotheses(self, hypotheses: Sequence[Hypothesis]) -> None:
        """Write a round's hypotheses down: all of them, or none if that fails."""
        self._insert("hypotheses", *(asdict(hypothesis) for hypothesis in hypotheses))

    def hypothesis(self, hypothesis: str) -> Hypothesis:
        """Return one hypothesis.

        Raises:
            SlipstreamError: no such hypothesis.
        """
        found = self._records([hypothesis], self._hypotheses, queries.HYPOTHESES, _hypothesis)
        if not found:
            raise SlipstreamError(
                f"unknown hypothesis {hypothesis!r}; `slipstream show RUN` lists them"
            )
        return found[0]

    def hypotheses(self, run: str) -> list[Hypothesis]:
        """Return the hypotheses of a run, in order."""
        ids = self._ids(queries.HYPOTHESIS_IDS_OF_RUN, run=run)
        return self._records(ids, self._hypotheses, queries.HYPOTHESES, _hypothesis)

    # Experiments

    def add_experiment(self, experiment: Experiment) -> None:
        """Record that an experiment begins."""
        self._insert("experiments", asdict(experiment))

    def experiment(self, experiment: str) -> Experiment | None:
        """Return one experiment with its verdict, or None."""
        found = self._experiments([experiment])
        return found[0] if found else None

    def experiments(
        self, *, run: str | None = None, variant: str | None = None
    ) -> list[Experiment]:
        """Return experiments with their verdicts, oldest first: all, or a run's, or a variant's."""
        if run is not None:
            ids = self._ids(queries.EXPERIMENT_IDS_OF_RUN, run=run)
        elif variant is not None:
            ids = self._ids(queries.EXPERIMENT_IDS_OF_VARIANT, variant=variant)
        else:
            ids = self._ids(queries.ALL_EXPERIMENT_IDS)
        return self._experiments(ids)

    def experiments_on(self, challenge: str, machine: str) -> list[Experiment]:
        """Return all experiments on one challenge and kind of machine, oldest first."""
        ids = self._ids(queries.EXPERIMENT_IDS_ON, challenge=challenge, machine=machine)
        return self._experiments(ids)

    def _experiments(self, ids: Sequence[str]) -> list[Experiment]:
        return self._records(ids, self._decided, queries.EXPERIMENTS, _experiment, _is_decided)

    # Measurements

    # Under a claim, they are refused with StaleClaimError once it has run out.

    def add_pair(self, experiment: str, pair: Pair, claim: Claim | None = None) -> None:
        """Record a measured pair; the first record of a stage's index stays."""
        row = {"experiment": experiment, "measured_at": time.time(), **asdict(pair)}
        self._insert("measurements", row, claim=claim)

    def add_score(
        self, experiment: str, split: Split, score: DocumentScore, claim: Claim | None = None
    ) -> None:
        """Record a scored document; the first record stays."""
        row = {"experiment": experiment, "split": split, "measured_at": time.time()}
        self._insert("scores", row | asdict(score), claim=claim)

    def add_audit(self, experiment: str, audit: Audit, claim: Claim | None = None) -> None:
        """Record an audited block; the first record stays."""
        row = {"experiment": experiment, "audited_at": time.time(), **asdict(audit)}
        self._insert("audits", row, claim=claim)

    def evidence(self, experiment: str) -> Evidence:
        """Return everything measured for an experiment so far, in order."""

        def work(connection: Connection) -> Evidence:
            measured = connection.execute(queries.PAIRS, {"experiment": experiment}).mappings()
            pairs = tuple(map(_pair, measured))
            scored = connection.execute(queries.SCORES, {"experiment": experiment}).mappings()
            scores: dict[Split, tuple[DocumentScore, ...]] = dict.fromkeys(Split, ())
            for row in scored:
                score = DocumentScore(**{name: row[name] for name in _SCORE_FIELDS})
                scores[Split(row["split"])] += (score,)
            audited = connection.execute(queries.AUDITS, {"experiment": experiment}).mappings()
            audits = tuple(
                Audit(
                    **{name: row[name] for name in _AUDIT_FIELDS} | {"stage": Stage(row["stage"])}
                )
                for row in audited
            )
            return Evidence(pairs, scores, audits)

        return self.database.read(work)

    # What came out

    def record(
        self,
        experiment: str,
        judgement: Judgement,
        finding: Finding | None,
        spent_s: float,
        claim: Claim | None = None,
    ) -> None:
        """Write verdict, finding and the run's time in one transaction; again changes nothing.

        What is derived from verdicts (standings, ledger, calibration) follows in the same one.

        Args:
            spent_s: the run's time so far.
            claim: released with the verdict.

        Raises:
            StaleClaimError: the claim has run out.
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
            "log": judgement.log or None,
        }

        def work(connection: Connection) -> None:
            if claim is not None:
                self.claims.guard(connection, claim)
            derive.lock(connection)
            decided_at = derive.next_moment(connection, self.database.now)
            verdict = self._or_ignore("verdicts", {**row, "decided_at": decided_at})
            is_new = connection.execute(*verdict).rowcount == 1
            if finding is not None:
                connection.execute(*self._or_ignore("findings", asdict(finding)))
            if is_new:
                derive.add(connection, experiment)
            of_run = connection.scalar(queries.RUN_OF_EXPERIMENT, {"experiment": experiment})
            connection.execute(queries.ADD_RUN_TIME, {"of_run": of_run, "new_spent_s": spent_s})
            if claim is not None:
                self.claims.end(connection, claim)

        self.database.write(work)

    def add_observation(self, observation: Observation) -> None:
        """Record what a benchmarker looked at; the first record stays."""
        self._insert("observations", asdict(observation))

    def observations(self, experiment: str) -> list[Observation]:
        """Return what was looked at besides an experiment's verdict, in order."""
        return [Observation(**row) for row in self._rows(queries.OBSERVATIONS, of=experiment)]

    def add_rung(self, rung: Rung) -> None:
        """Record how far up the ladder an experiment climbed; the first record stays."""
        self._insert("rungs", {**asdict(rung), "id": f"{rung.experiment}|{rung.rung}"})

    def rungs(self, experiment: str) -> list[Rung]:
        """Return the rungs that an experiment has tried, in order."""
        rows = self._rows(queries.RUNGS, of=experiment)
        return [Rung(**{k: v for k, v in row.items() if k != "id"}) for row in rows]

    def findings(self) -> list[Finding]:
        """Return everything learned, oldest first."""
        return [Finding(**row) for row in self._rows(queries.FINDINGS)]

    # How

    def _insert(self, table: str, *rows: dict[str, Any], claim: Claim | None = None) -> None:
        def work(connection: Connection) -> None:
            if claim is not None:
                self.claims.guard(connection, claim)
            for row in rows:
                connection.execute(*self._or_ignore(table, row))

        self.database.write(work)

    def _or_ignore(self, name: str, values: dict[str, Any]) -> tuple[Executable, dict[str, Any]]:
        """Return an insert that leaves an existing row of the same key as it is, and its values."""
        table = queries.TABLES[name]
        row = {name: redact_all(held) for name, held in values.items() if name in table.columns}
        return queries.insert_or_ignore(self.database.dialect, table), row

    def _rows(self, query: Select[Any], **values: Any) -> Sequence[_Row]:
        return self.database.read(lambda c: c.execute(query, values).mappings().all())

    def _ids(self, query: Select[Any], **values: Any) -> Sequence[str]:
        return self.database.read(lambda c: c.scalars(query, values).all())

    def _records(
        self,
        ids: Sequence[str],
        known: dict[str, _Record],
        query: Select[Any],
        make: Callable[[_Row], _Record],
        lasts: Callable[[_Record], bool] = lambda _: True,
    ) -> list[_Record]:
        """Return the records of `ids` that exist, in that order; read only those not `known` yet.

        Args:
            lasts: whether a record will never change, and may become known.
        """
        found = {id_: known[id_] for id_ in ids if id_ in known}
        missing = [id_ for id_ in ids if id_ not in found]
        for start in range(0, len(missing), _IDS_PER_QUERY):
            for row in self._rows(query, ids=missing[start : start + _IDS_PER_QUERY]):
                found[row["id"]] = record = make(row)
                if lasts(record):
                    known[row["id"]] = record
        return [found[id_] for id_ in ids if id_ in found]


def open_memory(url: str | None = None) -> Memory:
    """Open a memory, creating or migrating it if needed.

    Args:
        url: `sqlite:///FILE` or `postgresql+psycopg://…`; the user's own SQLite file by default.

    Raises:
        SlipstreamError: it can't be opened, or a newer slipstream wrote it.
    """
    return Memory(url or default_url())


def latest_run(runs: Sequence[Run]) -> Run:
    """Return the newest of `runs`.

    Raises:
        SlipstreamError: there is none.
    """
    if not runs:
        raise SlipstreamError("no runs yet; `slipstream run` starts one")
    return max(runs, key=lambda run: run.started_at)


_IDS_PER_QUERY = 10_000  # SQLite takes 32,766 parameters, Postgres 65,535
_PAIR_FIELDS = [field.name for field in fields(Pair)]
_AUDIT_FIELDS = [field.name for field in fields(Audit)]
_SCORE_FIELDS = [field.name for field in fields(DocumentScore)]


def _run(row: _Row) -> Run:
    return Run(**{**row, "state": RunState(row["state"])})


def _pair(row: _Row) -> Pair:
    return Pair(
        **{name: row[name] for name in _PAIR_FIELDS}
        | {
            "stage": Stage(row["stage"]),
            "prompts": tuple(row["prompts"]),
            "tokens": tuple(tuple(block) for block in row["tokens"]),
            "conditions": Conditions(**row["conditions"]),
        }
    )


def _variant(row: _Row) -> Variant:
    return Variant(**row)


def _hypothesis(row: _Row) -> Hypothesis:
    return Hypothesis(**row)


def _is_decided(experiment: Experiment) -> bool:
    return experiment.verdict is not None


def _experiment(row: _Row) -> Experiment:
    if row["verdict"] is None:
        return Experiment(**{**row, "reason": ""})
    decided = {"verdict": Verdict(row["verdict"]), "cause": Cause(row["cause"])}
    return Experiment(**{**row, **decided})
