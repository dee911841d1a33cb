"""The leaderboard: every variant tried on a challenge, against one baseline.

A variant's speed-up is a direct measurement against the baseline where there is one. Elsewhere it
is a chain: its gain over the champion that it raced, times that champion's speed-up; log ratios
and their variances add up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from slipstream.evaluation.acceptance import Cause, Verdict
from slipstream.evaluation.statistics import Estimate

from .records import Experiment
from .store import Memory


@dataclass(frozen=True)
class Standing:
    """One row of the leaderboard; these fields are stable.

    Attributes:
        tps: output tokens per second, prefill included, when it was last judged.
        speedup: against `baseline`, with its 95 % interval; None if it never ran.
        direct: whether the speed-up was measured against the baseline itself, not chained.
        ppl_rise: relative rise of perplexity over the reference; None if speed decided first.
        experiments: how often the variant was judged.
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


def leaderboard(memory: Memory, challenge: str, machine: str) -> list[Standing]:
    """Return the standings on one challenge and kind of machine: kept ones first, fastest first."""
    rules = [run for run in memory.runs() if run.challenge == challenge]
    if not rules:
        return []
    baseline, tier = rules[-1].rules["baseline"], rules[-1].rules["tier"]
    experiments = [e for e in memory.experiments_on(challenge, machine) if e.verdict is not None]
    variants = {variant.id: variant for variant in memory.variants()}
    known = speedups(experiments, baseline)
    by_variant: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        by_variant.setdefault(experiment.variant, []).append(experiment)
    standings = []
    for name, own in by_variant.items():
        races = [e for e in own if e.rival != baseline] or own
        judged = races[-1]
        speedup = known.get(name)
        interval = speedup.interval() if speedup else (None, None)
        scored = [e for e in own if e.ppl_rise is not None]
        timed = [e for e in own if e.tps is not None]
        finite = interval[1] is not None and math.isfinite(interval[1])
        standings.append(
            Standing(
                variant=name,
                tier=tier,
                tps=timed[-1].tps if timed else None,
                speedup=speedup.ratio if speedup else None,
                speedup_low=interval[0],
                speedup_high=interval[1] if finite else None,
                baseline=baseline,
                direct=any(e.rival == baseline and e.gain is not None for e in own),
                ppl_rise=scored[-1].ppl_rise if scored else None,
                kl=scored[-1].kl if scored else None,
                top1=scored[-1].top1 if scored else None,
                verdict=str(judged.verdict),
                cause=str(judged.cause),
                reason=judged.reason,
                experiments=len(own),
                parent=variants[name].parent,
                settings=variants[name].settings,
            )
        )
    return sorted(standings, key=_rank)


def champion(memory: Memory, challenge: str, machine: str) -> Standing | None:
    """Return the fastest kept variant, or None before the first run."""
    standings = leaderboard(memory, challenge, machine)
    return standings[0] if standings and standings[0].verdict == Verdict.KEPT else None


def speedups(experiments: Sequence[Experiment], baseline: str) -> dict[str, Estimate]:
    """Return each variant's speed-up over the baseline, direct or chained, where one is known."""
    races: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        if experiment.gain is not None:
            races.setdefault(experiment.variant, []).append(experiment)
    best = {variant: _best_race(own, baseline) for variant, own in races.items()}
    found: dict[str, Estimate] = {}
    for variant in best:
        # Follow rivals until one whose speed-up is known, then multiply on the way back.
        chain: list[Experiment] = []
        name = variant
        while name in best and name not in found and best[name] not in chain:
            chain.append(best[name])
            name = best[name].rival
        total = found.get(name)
        for race in reversed(chain):
            if race.estimate is None or (total is None and race.rival != baseline):
                break
            total = race.estimate if total is None else race.estimate + total
            found[race.variant] = total
    return found


def _best_race(own: list[Experiment], baseline: str) -> Experiment:
    """Return the race that says most about a variant's speed."""
    direct = [experiment for experiment in own if experiment.rival == baseline]
    if direct:  # the verification at a run's end has more pairs than a start
        return max(direct, key=lambda e: (e.num_pairs or 0, e.started_at))
    gains = [experiment for experiment in own if experiment.cause is Cause.GAIN]
    return (gains or own)[-1]


def _rank(standing: Standing) -> tuple[bool, float]:
    return (standing.verdict != Verdict.KEPT, -(standing.speedup or 0.0))
