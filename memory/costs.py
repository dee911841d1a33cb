"""What thinking and measuring cost: tokens, dollars, seconds; per call, experiment and kept gain.

A call's row is there before the call, with the most that it can cost, so that a budget holds even
if the process dies in the middle: what was begun counts in full until its answer says less.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection, func, select, update

from slipstream.evaluation.acceptance import Cause
from slipstream.evaluation.redaction import redact_all

from .database import Database
from .queries import TABLES, insert_or_ignore
from .store import Memory

IN_FLIGHT = "in flight"
MEASURING = "measuring"  # the role of what no model did
_COSTS = TABLES["costs"]


@dataclass(frozen=True)
class Cost:
    """One call of a model, or one stretch of measuring.

    Attributes:
        experiment: for which it was; None for planning.
        role: planner, coder, benchmarker, or "measuring".
        model: the model as it was asked for, or the machine.
        outcome: "ok", "in flight", or what went wrong.
        usd: None where no price is known.
        gpu_s: seconds for which a GPU was kept busy or waiting.
    """

    id: str
    run: str
    experiment: str | None
    role: str
    model: str
    outcome: str = IN_FLIGHT
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    usd: float | None = None
    wall_s: float = 0.0
    gpu_s: float = 0.0
    started_at: float = 0.0


@dataclass(frozen=True)
class Spending:
    """What many costs come to.

    Attributes:
        unpriced: calls whose price isn't known, and isn't in `usd`.
    """

    name: str
    calls: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    unpriced: int = 0
    wall_s: float = 0.0
    gpu_s: float = 0.0


@dataclass(frozen=True)
class Bill:
    """What a run cost.

    Attributes:
        by_experiment: in order; planning and whatever was for no experiment comes first.
        kept: experiments that were kept.
        usd_per_kept, minutes_per_kept: over all that was spent; None if nothing was kept.
        log_gain: log ratio of all kept gains together.
    """

    total: Spending
    by_role: list[Spending]
    by_model: list[Spending]
    by_experiment: list[Spending]
    budget_usd: float | None
    kept: int
    log_gain: float
    usd_per_kept: float | None
    minutes_per_kept: float | None


class Costs:
    """The costs in a memory."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, cost: Cost) -> None:
        """Write down that something begins, and the most that it can cost."""
        row = redact_all(asdict(replace(cost, started_at=cost.started_at or time.time())))
        statement = insert_or_ignore(self._database.dialect, _COSTS)
        self._database.write(lambda connection: connection.execute(statement, row))

    def begin_within(self, cost: Cost, limit: float | None, keep: float = 0.0) -> float | None:
        """Write down that something begins, if its run has the dollars for it.

        Whoever else spends from the same budget, here or in another process, is seen.

        Args:
            limit: dollars of the whole run; None for no limit.
            keep: dollars that must stay.

        Returns:
            None if it has begun; else the dollars that are left.
        """
        row = redact_all(asdict(replace(cost, started_at=cost.started_at or time.time())))
        others = select(func.sum(_COSTS.c.usd)).where(
            _COSTS.c.run == cost.run, _COSTS.c.id != cost.id
        )

        def work(connection: Connection) -> float | None:
            self._database.lock(connection, f"costs of {cost.run}")
            connection.execute(insert_or_ignore(self._database.dialect, _COSTS), row)
            left = math.inf if limit is None else limit - float(connection.scalar(others) or 0.0)
            if (cost.usd or 0.0) + keep <= left:
                return None
            connection.execute(_COSTS.delete().where(_COSTS.c.id == cost.id))
            return max(0.0, left)

        return self._database.write(work)

    def end(self, name: str, **found: Any) -> None:
        """Write down what it did cost: outcome, tokens, usd, wall_s."""
        statement = update(_COSTS).where(_COSTS.c.id == name).values(**redact_all(found))
        self._database.write(lambda connection: connection.execute(statement))

    def of_run(self, run: str) -> list[Cost]:
        """Return a run's costs, oldest first."""
        query = select(_COSTS).where(_COSTS.c.run == run)
        query = query.order_by(_COSTS.c.started_at, _COSTS.c.id)
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [Cost(**row) for row in rows]

    def of_role(self, role: str) -> list[Cost]:
        """Return what a role has cost in all runs."""
        query = select(_COSTS).where(_COSTS.c.role == role).order_by(_COSTS.c.started_at)
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [Cost(**row) for row in rows]

    def usd(self, run: str) -> float:
        """Return the dollars that a run has spent or committed."""
        query = select(func.sum(_COSTS.c.usd)).where(_COSTS.c.run == run)
        return float(self._database.read(lambda connection: connection.scalar(query)) or 0.0)

    def count(self, run: str) -> int:
        """Return how many costs a run has."""
        query = select(func.count()).select_from(_COSTS).where(_COSTS.c.run == run)
        return int(self._database.read(lambda connection: connection.scalar(query)) or 0)


def bill(memory: Memory, run: str) -> Bill:
    """Add up a run's costs.

    Raises:
        SlipstreamError: no such run.
    """
    one = memory.run(run)
    costs = Costs(memory.database).of_run(run)
    kept = [e for e in memory.experiments(run=run) if e.cause is Cause.GAIN and e.gain is not None]
    total = _sum("total", costs)
    count = len(kept)
    return Bill(
        total=total,
        by_role=_sums(costs, lambda cost: cost.role),
        by_model=_sums(costs, lambda cost: f"{cost.role} {cost.model}"),
        by_experiment=_sums(costs, lambda cost: cost.experiment or ""),
        budget_usd=one.budget_usd,
        kept=count,
        log_gain=math.fsum(e.gain or 0.0 for e in kept),
        usd_per_kept=total.usd / count if count else None,
        minutes_per_kept=one.spent_s / 60 / count if count else None,
    )


def _sums(costs: list[Cost], name_of: Callable[[Cost], str]) -> list[Spending]:
    names = sorted({name_of(cost) for cost in costs})
    return [_sum(name, [cost for cost in costs if name_of(cost) == name]) for name in names]


def _sum(name: str, costs: Iterable[Cost]) -> Spending:
    costs = list(costs)
    return Spending(
        name=name,
        calls=sum(cost.role != MEASURING for cost in costs),
        input_tokens=sum(cost.input_tokens for cost in costs),
        cached_tokens=sum(cost.cached_tokens for cost in costs),
        output_tokens=sum(cost.output_tokens for cost in costs),
        usd=math.fsum(cost.usd or 0.0 for cost in costs),
        unpriced=sum(cost.usd is None and cost.role != MEASURING for cost in costs),
        wall_s=math.fsum(cost.wall_s for cost in costs),
        gpu_s=math.fsum(cost.gpu_s for cost in costs),
    )
