"""Puts together what a planner may look at, from memory."""

import math
from collections.abc import Sequence

from slipstream.agents.roles import Briefing, Trial
from slipstream.evaluation.gates import GATES
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.memory.leaderboard import speedups
from slipstream.memory.records import Hypothesis

from .context import LoopContext


def brief(context: LoopContext, champion: str, planned: Sequence[Hypothesis]) -> Briefing:
    """Return the planner's briefing on the champion and on every trial of the same engine."""
    memory = context.memory
    experiments = memory.experiments_on(context.challenge.name, context.machine_id)
    variants = {variant.id: variant for variant in memory.variants()}
    engine = variants[champion].engine
    limit = GATES[context.challenge.tier].max_ppl_rise
    known = speedups(experiments, context.challenge.baseline)
    tps = {e.variant: e.tps for e in experiments if e.tps is not None}
    trials = []
    for experiment in experiments:
        variant = variants[experiment.variant]
        if experiment.verdict is None or experiment.cause is None or variant.engine != engine:
            continue
        rival = variants.get(experiment.rival)
        if rival is None:  # a baseline is no variant
            continue
        estimate = experiment.estimate
        base = known.get(rival.id)
        rise = experiment.ppl_rise_high
        trials.append(
            Trial(
                settings=variant.settings,
                changed={k: v for k, v in variant.settings.items() if rival.settings.get(k) != v},
                verdict=experiment.verdict,
                cause=experiment.cause,
                speed=base.mean + estimate.mean if base and estimate else None,
                ppl_excess=-limit if rise is None else rise - limit,
                rival_tps=tps.get(rival.id) or math.inf,
            )
        )
    return Briefing(
        challenge=context.challenge.name,
        shape=context.shape,
        machine=context.machine,
        bandwidth_gbps=context.bandwidth_gbps,
        champion=champion,
        champion_settings={**SEED_SETTINGS, **variants[champion].settings},
        champion_tps=tps.get(champion) or 1.0,
        trials=tuple(trials),
        planned=tuple(hypothesis.settings for hypothesis in planned),
        seed=context.seed,
    )
