"""The lever ledger: what is known of each lever, per model family and kind of machine.

Derived from experiments in `derive.py`; never typed by hand. A later result can contest an earlier
one, and both stay: the entry then says *contested*.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, select

from slipstream.evaluation.statistics import Estimate

from .database import Database
from .queries import TABLES

_LEDGER, _CALIBRATION = TABLES["ledger"], TABLES["calibration"]
_STATUS = {
    "kept": "works",
    "no_gain": "no gain",
    "quality": "costs quality",
    "failed": "fails",
}
_AS_THEY_ARE = (
    *("lever", "value", "family", "machine", "kept", "no_gain", "quality", "failed"),
    *("undecided", "best_experiment", "refuted_tps", "mechanism", "reopen", "last_seen"),
)
# A prediction is trusted as if this many perfect ones had been seen already.
_PRIOR_COUNT = 3.0


_OF_AGENT = select(_CALIBRATION).where(
    *(_CALIBRATION.c[name] == bindparam(name) for name in ("agent", "family", "machine"))
)


@dataclass(frozen=True)
class LedgerEntry:
    """One value of one lever (or of several together), on one family and kind of machine.

    Attributes:
        kept, no_gain, quality, failed, undecided: how many trials ended so.
        best: the largest effect measured, a log ratio over the rival; a kept one if there is any.
        refuted_tps: the rival's speed in the latest-reaching trial without a gain.
        evidence: ids of the latest experiments.
    """

    lever: str
    value: str
    family: str
    machine: str
    kept: int
    no_gain: int
    quality: int
    failed: int
    undecided: int
    best: Estimate | None
    best_experiment: str | None
    refuted_tps: float | None
    mechanism: str
    reopen: str
    evidence: tuple[str, ...]
    last_seen: float

    @property
    def trials(self) -> int:
        """How often it was tried."""
        return self.kept + self.no_gain + self.quality + self.failed + self.undecided

    @property
    def status(self) -> str:
        """works, no gain, costs quality, fails, contested, or open while nothing is decided."""
        told = [word for name, word in _STATUS.items() if getattr(self, name)]
        if not told:
            return "open"
        return told[0] if len(told) == 1 else "contested"


@dataclass(frozen=True)
class Correction:
    """How an agent's predictions of a lever's gain came true."""

    agent: str
    lever: str
    count: int
    predicted: float
    measured: float
    error: float = field(default=0.0)  # root mean square, log ratio

    @property
    def factor(self) -> float:
        """What to multiply a predicted log gain by: measured over predicted, drawn towards 1.

        At most 2, and not below 0: a lever that slows things down isn't predicted to.
        """
        typical = abs(self.predicted) / self.count if self.count else 0.0
        prior = _PRIOR_COUNT * max(typical, 0.01)
        ratio = (self.measured + prior) / (max(self.predicted, 0.0) + prior)
        return min(2.0, max(0.0, ratio))


def ledger(
    database: Database,
    *,
    family: str | None = None,
    machine: str | None = None,
    lever: str | None = None,
    limit: int = 200,
) -> list[LedgerEntry]:
    """Return ledger entries, the latest seen first."""
    query = select(_LEDGER)
    for name, value in (("family", family), ("machine", machine), ("lever", lever)):
        if value is not None:
            query = query.where(_LEDGER.c[name] == value)
    query = query.order_by(_LEDGER.c.last_seen.desc(), _LEDGER.c.lever, _LEDGER.c.value)
    rows = database.read(lambda c: c.execute(query.limit(limit)).mappings().all())
    return [_entry(row) for row in rows]


def corrections(database: Database, agent: str, family: str, machine: str) -> dict[str, Correction]:
    """Return by lever how an agent's predictions came true."""
    values = {"agent": agent, "family": family, "machine": machine}
    rows = database.read(lambda c: c.execute(_OF_AGENT, values).mappings().all())
    return {row["lever"]: _correction(row) for row in rows}


def calibration(
    database: Database,
    limit: int = 200,
    *,
    family: str | None = None,
    machine: str | None = None,
) -> list[Correction]:
    """Return how predictions came true, per agent and lever: on one family and machine, or all."""
    columns = _CALIBRATION.c
    query = select(_CALIBRATION).order_by(columns.agent, columns.lever)
    for name, value in (("family", family), ("machine", machine)):
        if value is not None:
            query = query.where(columns[name] == value)
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for row in database.read(lambda c: c.execute(query).mappings().all()):
        into = merged.setdefault(
            (row["agent"], row["lever"]),
            {"agent": row["agent"], "lever": row["lever"], "count": 0}
            | dict.fromkeys(("predicted", "measured", "squared_error"), 0.0),
        )
        for name in ("count", "predicted", "measured", "squared_error"):
            into[name] += row[name]
    return [_correction(row) for row in merged.values()][:limit]


def _correction(row: Mapping[Any, Any]) -> Correction:
    error = math.sqrt(row["squared_error"] / row["count"])
    return Correction(
        row["agent"], row["lever"], row["count"], row["predicted"], row["measured"], error
    )


def _entry(row: Mapping[Any, Any]) -> LedgerEntry:
    best = None
    if row["best_gain"] is not None:
        stderr = math.inf if row["best_stderr"] is None else row["best_stderr"]
        best = Estimate(row["best_gain"], stderr, row["best_pairs"])
    same = {name: row[name] for name in _AS_THEY_ARE}
    return LedgerEntry(**same, best=best, evidence=tuple(name for _, name in row["evidence"]))
