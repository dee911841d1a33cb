"""The leaderboard: every variant tried on a challenge, against one baseline.

A variant's speed-up is a direct measurement against the baseline where there is one. Elsewhere it
is a chain: its gain over the champion that it raced, times that champion's speed-up; log ratios
and their variances add up. `derive.py` keeps the standings; here they are read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from slipstream.evaluation.acceptance import Cause, Verdict
from slipstream.evaluation.statistics import Estimate

from .derive import UNRANKED
from .queries import TABLES
from .store import Memory

_AS_THEY_ARE = (
    *("variant", "tps", "direct", "ppl_rise", "kl", "top1", "verdict", "cause", "reason"),
    *("experiments", "parent", "settings", "novelty", "lineage"),
)
TOP = 10  # so many variants of one ancestor, at the top, are a monoculture
_STANDINGS, _VARIANTS, _RUNS = TABLES["standings"], TABLES["variants"], TABLES["runs"]
_LINEAGES = TABLES["lineages"]


@dataclass(frozen=True)
class Standing:
    """One row of the leaderboard; these fields are stable.

    Attributes:
        tps: output tokens per second, prefill included, when it was last judged.
        speedup: against `baseline`, with its 95 % interval; None if it never ran.
        direct: whether the speed-up was measured against the baseline itself, not chained.
        ppl_rise: relative rise of perplexity over the reference; None if speed decided first.
        experiments: how often the variant was judged.
        novelty: 1 if nobody had tried its change before, less the more often it was tried.
        lineage: its ancestor next to the seed.
    """

    variant: str
    tier: str
    tps: float | None
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    baseline: str
    direct: bool
    ppl_rise: float | None
    kl: float | None
    top1: float | None
    verdict: str
    cause: str
    reason: str
    experiments: int
    parent: str | None
    settings: dict[str, str]
    novelty: float
    lineage: str


def leaderboard(
    memory: Memory, challenge: str, machine: str, limit: int | None = None
) -> list[Standing]:
    """Return the standings on one challenge and kind of machine: kept ones first, fastest first."""
    rules = memory.database.read(
        lambda connection: connection.execute(
            select(_RUNS.c.rules)
            .where(_RUNS.c.challenge == challenge)
            .order_by(_RUNS.c.started_at.desc())
            .limit(1)
        ).scalar()
    )
    if rules is None:
        return []
    query = (
        select(_STANDINGS, _VARIANTS.c.parent, _VARIANTS.c.settings)
        .join(_VARIANTS, _VARIANTS.c.id == _STANDINGS.c.variant)
        .where(_STANDINGS.c.challenge == challenge, _STANDINGS.c.machine == machine)
        .order_by(_STANDINGS.c.kept.desc(), _STANDINGS.c.rank.desc())
        .limit(limit)
    )
    rows = memory.database.read(lambda connection: connection.execute(query).mappings().all())
    return [_standing(row, rules["baseline"], rules["tier"]) for row in rows]


def champion(memory: Memory, challenge: str, machine: str) -> Standing | None:
    """Return the fastest kept variant, or None before the first run."""
    standings = leaderboard(memory, challenge, machine, limit=1)
    return standings[0] if standings and standings[0].verdict == Verdict.KEPT else None


def speedups(memory: Memory, challenge: str, machine: str) -> dict[str, Estimate]:
    """Return each variant's speed-up over the baseline, direct or chained, where one is known."""
    query = select(_STANDINGS).where(
        _STANDINGS.c.challenge == challenge,
        _STANDINGS.c.machine == machine,
        _STANDINGS.c.log_speedup.is_not(None),
    )
    rows = memory.database.read(lambda connection: connection.execute(query).mappings().all())
    return {row["variant"]: _speedup(row) for row in rows}


@dataclass(frozen=True)
class Lineage:
    """All that descends from one child of the seed.

    Attributes:
        root: the child of the seed.
        best: its fastest variant.
        speedup: of `best` over the baseline; None if none of them ever ran.
        trials: how many of its variants were judged.
    """

    root: str
    best: str
    speedup: float | None
    kept: bool
    trials: int


@dataclass(frozen=True)
class Pulse:
    """Whether the search is still alive.

    Attributes:
        stagnation: variants judged since the latest one that was kept for its gain.
        monoculture: the one ancestor of the top ten; empty if they have several, or are fewer.
        lineages: the best twenty, those with something kept first.
    """

    stagnation: int
    monoculture: str
    lineages: tuple[Lineage, ...]


_HERE = tuple(_STANDINGS.c[name] == bindparam(name) for name in ("challenge", "machine"))
_BEST_FIRST = (_STANDINGS.c.kept.desc(), _STANDINGS.c.rank.desc())
_LATEST_GAIN = select(func.max(_STANDINGS.c.decided_at)).where(
    *_HERE, _STANDINGS.c.kept, _STANDINGS.c.cause == Cause.GAIN
)
_NUM_SINCE = select(func.count()).where(
    *_HERE, _STANDINGS.c.decided_at > bindparam("since"), ~_STANDINGS.c.kept
)
_LEADING = (
    select(_STANDINGS.c.lineage)
    .where(*_HERE, _STANDINGS.c.log_speedup.is_not(None))
    .order_by(*_BEST_FIRST)
    .limit(TOP)
)
_BEST_LINEAGES = (
    select(_LINEAGES)
    .where(*(_LINEAGES.c[name] == bindparam(name) for name in ("challenge", "machine")))
    .order_by(_LINEAGES.c.kept.desc(), _LINEAGES.c.rank.desc())
    .limit(2 * TOP)
)


def pulse(memory: Memory, challenge: str, machine: str) -> Pulse:
    """Look at how the search goes: stagnation, monoculture, lineages."""
    here = {"challenge": challenge, "machine": machine}

    def work(connection: Connection) -> Pulse:
        since = connection.scalar(_LATEST_GAIN, here) or 0.0
        leading = connection.scalars(_LEADING, here).all()
        found = connection.execute(_BEST_LINEAGES, here).mappings().all()
        return Pulse(
            stagnation=connection.scalar(_NUM_SINCE, {**here, "since": since}) or 0,
            monoculture=leading[0] if len(leading) == TOP and len(set(leading)) == 1 else "",
            lineages=tuple(map(_lineage, found)),
        )

    return memory.database.read(work)


def _lineage(row: Mapping[Any, Any]) -> Lineage:
    speedup = None if row["rank"] == UNRANKED else math.exp(row["rank"])
    return Lineage(row["root"], row["best"], speedup, row["kept"], row["trials"])


def _speedup(row: Mapping[Any, Any]) -> Estimate:
    stderr = math.inf if row["stderr"] is None else row["stderr"]
    return Estimate(row["log_speedup"], stderr, row["num_pairs"])


def _standing(row: Mapping[Any, Any], baseline: str, tier: str) -> Standing:
    speedup = None if row["log_speedup"] is None else _speedup(row)
    low, high = speedup.interval() if speedup else (None, None)
    return Standing(
        **{name: row[name] for name in _AS_THEY_ARE},
        tier=tier,
        speedup=speedup.ratio if speedup else None,
        speedup_low=low,
        speedup_high=high if high is not None and math.isfinite(high) else None,
        baseline=baseline,
    )
