"""How models did so far, by role: the gain of each of their hypotheses, and what they cost."""

import math
from collections import defaultdict

from sqlalchemy import select

from slipstream.evaluation.acceptance import Cause

from .costs import Cost, Costs
from .queries import TABLES
from .store import Memory

_HYPOTHESES, _VERDICTS = TABLES["hypotheses"], TABLES["verdicts"]
_OUTCOMES = (
    select(_HYPOTHESES.c.id, _HYPOTHESES.c.agent, _VERDICTS.c.cause, _VERDICTS.c.gain)
    .select_from(_HYPOTHESES.join(_VERDICTS, _VERDICTS.c.experiment == _HYPOTHESES.c.id))
    .order_by(_VERDICTS.c.decided_at)
)
# Verdicts that say nothing about whoever had the idea or wrote it.
_SILENT = (Cause.CLAIMED, Cause.EXPOSED, Cause.BUDGET, Cause.REFUSED)


def gains(memory: Memory, role: str, model: str) -> tuple[float, ...]:
    """Return the log gain of each judged hypothesis in which a model had that role, oldest first.

    One that wasn't kept has gained nothing.
    """
    if role == "planner":
        mine = None
    else:
        own = [cost for cost in Costs(memory.database).of_role(role) if cost.model == model]
        mine = {cost.experiment for cost in own}
    rows = memory.database.read(lambda connection: connection.execute(_OUTCOMES).mappings().all())
    return tuple(
        row["gain"] if row["cause"] == Cause.GAIN else 0.0
        for row in rows
        if row["cause"] not in _SILENT
        and (row["agent"] == model if mine is None else row["id"] in mine)
    )


def usd(memory: Memory, role: str, model: str) -> float | None:
    """Return what a model has cost in a role, in all runs; None if a call of it has no price."""
    by_model: dict[str, list[Cost]] = defaultdict(list)
    for cost in Costs(memory.database).of_role(role):
        by_model[cost.model].append(cost)
    prices = [cost.usd for cost in by_model[model]]
    return None if None in prices else math.fsum(price or 0.0 for price in prices)
