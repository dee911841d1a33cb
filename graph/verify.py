"""verify: the champion against the first baseline, on held-out prompts, in one direct race.

Gains that were measured one by one and multiplied drift; this is the number that is reported.
"""

import time
from dataclasses import replace
from typing import Any

from langgraph.runtime import Runtime

from slipstream.evaluation.errors import OutOfMoneyError, SlipstreamError, UnreachedError
from slipstream.evaluation.pairs import Stage
from slipstream.memory.records import Experiment, RunState

from .context import LoopContext
from .measuring import measure_pairs, metered
from .state import LoopState
from .survey import against_baseline, record_against_baseline


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
        context.evaluator.expect(replace(against_baseline(experiment, num_pairs), last=True))
        try:
            with metered(context, None):
                measure_pairs(context, experiment, experiment.rival, Stage.BASELINE, num_pairs)
        except (OutOfMoneyError, UnreachedError) as error:
            raise SlipstreamError(
                f"champion {state.champion} is not verified: {error}; `slipstream resume "
                f"{state.run}` tries again, with more dollars if `--usd` says so"
            ) from error
        record_against_baseline(context, experiment)
    context.memory.update_run(state.run, state=RunState.FINISHED, spent_s=context.budget.spent_s)
    return {"done": True}
