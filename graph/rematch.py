"""A winner that landed late meets the champion that was crowned meanwhile.

With several experiments in flight, one can be proven faster than a champion that isn't it any more.
That counts, and goes into the ledger. Whether it is also faster than the new champion is told by
the chain of gains at best; so where the chain says yes, the two race directly.
"""

import math
from collections.abc import Mapping

from slipstream.agents.roles import Proposal
from slipstream.evaluation.acceptance import Cause
from slipstream.evaluation.statistics import Estimate
from slipstream.memory.leaderboard import speedups
from slipstream.memory.records import REMATCH, Experiment, Hypothesis

from .context import LoopContext
from .measuring import time_for_another


def rematches(context: LoopContext, champion: str, round_: int) -> list[Proposal]:
    """Return the race that this run still owes its fastest late winner, if it does.

    It doesn't count as an experiment: what it is about was counted. There has to be time for it;
    and the next one waits for its outcome, which may settle both.
    """
    if context.parallel == 1:
        return []
    found = speedups(context.memory, context.challenge.name, context.machine_id)
    # The time that is left in a replay is another.
    name = f"late winners in round {round_}"
    return [
        _proposal(context, variant, champion, found[variant].mean - found[champion].mean)
        for variant in context.tape.observe(name, lambda: _owed(context, champion, found))
    ]


def _owed(context: LoopContext, champion: str, found: Mapping[str, Estimate]) -> list[str]:
    known = context.memory.hypotheses(context.run)
    if champion not in found or not time_for_another(context, champion, len(known)):
        return []
    races = [one for one in known if is_rematch(one)]
    if any(_is_open(context.memory.experiment(race.id)) for race in races):
        return []
    settled = {race.parent for race in races if race.target == champion}
    settled |= _ancestors(champion, context)
    kept = {
        experiment.variant
        for experiment in context.memory.experiments(run=context.run)
        if experiment.cause is Cause.GAIN and experiment.variant in found
    }
    ahead = [one for one in kept - settled if found[one].mean > found[champion].mean]
    return sorted(ahead, key=lambda one: (-found[one].mean, one))[:1]


def _is_open(experiment: Experiment | None) -> bool:
    return experiment is None or experiment.verdict is None


def _proposal(context: LoopContext, variant: str, champion: str, ahead: float) -> Proposal:
    return Proposal(
        lever=REMATCH,
        settings=context.memory.variant(variant).settings,
        mechanism=f"kept over another champion than {champion}, and by more than it",
        predicted_gain=math.expm1(ahead),
        parent=variant,
        target=champion,
        agent="the loop",
    )


def is_rematch(hypothesis: Hypothesis) -> bool:
    """Whether a hypothesis asks for a race and nothing new."""
    return hypothesis.lever == REMATCH


def _ancestors(variant: str, context: LoopContext) -> set[str]:
    line: set[str] = set()
    ancestor: str | None = variant
    while ancestor is not None and ancestor not in line:
        line.add(ancestor)
        ancestor = context.memory.variant(ancestor).parent
    return line
