"""The rungs before a rented machine: this machine races a variant first, where it can.

A screen; then, if the variant's bytes are known, what its speed here says about the machine that
would be rented, else a longer race. Only what is clearly no faster is held back: whatever may be is
worth its job, whose pairs alone count.
"""

import time
from typing import Any

from slipstream.evaluation.errors import EngineError
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.projection import Machine, Measured, project
from slipstream.evaluation.statistics import Estimate, estimate, geometric_mean
from slipstream.memory.jobs import Jobs
from slipstream.memory.records import Experiment

from .context import LoopContext
from .ladder import PASSED, REFUSED, SKIPPED, note

_LEAST_PAIRS = 4  # the interval of two or three holds nothing back, however slow
SCREEN, PROJECTION, CONFIRMATION = "local screen", "projection", "local confirmation"


def screen_here(experiment: Experiment, context: LoopContext) -> str:
    """Return why no machine needs to be rented for a variant; empty if one does."""
    if context.here is None or Jobs(context.memory.database).of_experiment(experiment.id):
        return ""
    climbed = context.tape.observe(
        f"screened here {experiment.id}", lambda: _climb(experiment, context)
    )
    for rung, outcome, reason, wall_s in climbed:
        note(context, experiment, rung, outcome, reason, wall_s)
    rung, outcome, reason, _ = climbed[-1]
    return f"{rung}: {reason}" if outcome == REFUSED else ""


def _climb(experiment: Experiment, context: LoopContext) -> list[list[Any]]:
    """Return the rungs that were climbed: name, outcome, reason, seconds."""
    assert context.here is not None
    here, rule, begun = context.here, context.rule(), time.monotonic()
    try:
        count = max(_LEAST_PAIRS, rule.num_pairs(Stage.SCREEN))
        pairs = here.race(experiment.variant, experiment.rival, Stage.SCREEN, count)
        if len(pairs) < 2:
            why = here.problem or "too few pairs were undisturbed"
            return [[SCREEN, SKIPPED, why, time.monotonic() - begun]]
        found = estimate([pair.log_ratio for pair in pairs])
        climbed = [_rung(SCREEN, found, begun)]
        if climbed[-1][1] == PASSED:
            climbed.append(_projected(experiment, context, pairs, found))
        return climbed
    except EngineError as error:  # the machine that counts may have room for it, or the compiler
        return [[SCREEN, SKIPPED, f"it fails here: {error}", time.monotonic() - begun]]
    finally:
        here.release(experiment.variant)


def _projected(
    experiment: Experiment, context: LoopContext, pairs: list[Pair], found: Estimate
) -> list[Any]:
    """Return the rung after the screen: by arithmetic where that can be done, else by racing."""
    assert context.here is not None
    here, begun = context.here, time.monotonic()
    own, rival = (context.memory.variant(v) for v in (experiment.variant, experiment.rival))
    if own.engine != rival.engine or not context.bandwidth_gbps:
        count = context.rule().num_pairs(Stage.TEST)
        raced = here.race(experiment.variant, experiment.rival, Stage.TEST, count)
        more = estimate([pair.log_ratio for pair in (*pairs, *raced)])
        return _rung(CONFIRMATION, more, begun)
    speeds = [geometric_mean([p.tps for p in pairs]), geometric_mean([p.tps_rival for p in pairs])]
    there = [
        project(
            Measured(tps, context.catalogue.read_bytes(context.shape, dict(one.settings))),
            Machine(here.bandwidth_gbps),
            Machine(context.bandwidth_gbps),
        )
        for tps, one in zip(speeds, (own, rival), strict=True)
    ]
    shift = (there[0] / there[1]) / (speeds[0] / speeds[1])
    gain, high = there[0] / there[1] - 1, shift * found.interval()[1]
    told = (
        f"projected from {speeds[0]:.0f} against {speeds[1]:.0f} tokens/s here, at "
        f"{here.bandwidth_gbps:.0f} GB/s, to {there[0]:.0f} against {there[1]:.0f} at "
        f"{context.bandwidth_gbps:.0f} GB/s ({gain:+.1%}, at most {high - 1:+.1%})"
    )
    return [PROJECTION, REFUSED if high < 1 else PASSED, told, time.monotonic() - begun]


def _rung(name: str, found: Estimate, begun: float) -> list[Any]:
    low, high = found.interval()
    told = (
        f"{found.ratio - 1:+.1%} on this machine ({low - 1:+.1%} to {high - 1:+.1%}, "
        f"{found.num_pairs} pairs)"
    )
    return [name, REFUSED if high < 1 else PASSED, told, time.monotonic() - begun]
