"""verify: the champion against the first baseline, on held-out prompts, in one direct race.

Gains that were measured one by one and multiplied drift; this is the number that is reported.
"""

import time
from typing import Any

from langgraph.runtime import Runtime

from slipstream.evaluation.pairs import Stage
from slipstream.memory.records import Experiment, RunState

from .context import LoopContext
from .measuring import measure_pairs
from .state import LoopState
from .survey import record_against_baseline


def verify(state: LoopState, runtime: Runtime[LoopContext]) -> dict[str, Any]:
    """Race the champion against the baseline and close the run."""
    context = runtime.context
    if state.champion != context.seed_variant:
        experiment = Experiment(
            id=f"{state.run}-final",
            run=state.run,
            hypothesis=None,
            variant=state.champion,
            rival=context.challenge.baseline,
            started_at=time.time(),
        )
        context.memory.add_experiment(experiment)
        num_pairs = context.rule().num_pairs(Stage.CONFIRM)
        measure_pairs(context, experiment, experiment.rival, Stage.BASELINE, num_pairs)
        record_against_baseline(context, experiment)
    context.memory.update_run(state.run, state=RunState.FINISHED, spent_s=context.budget.spent_s)
    return {"done": True}


def reserve_s(context: LoopContext, champion: str) -> float:
    """Return the seconds to keep back for `verify`, from how fast both engines were so far."""
    start = context.memory.evidence(f"{context.run}-000").pairs
    baseline_tps = [pair.tps_rival for pair in start if pair.stage is Stage.BASELINE]
    own_tps = [e.tps for e in context.memory.experiments(variant=champion) if e.tps]
    if not baseline_tps or not own_tps:
        return 0.0
    block_s = 1 / min(baseline_tps) + 1 / min(own_tps)
    num_tokens = 2 * context.challenge.workload.num_tokens
    return num_tokens * block_s * context.challenge.acceptance.confirm_pairs
