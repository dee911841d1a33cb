"""measure: every variant of the round against the champion, until the rule can decide."""

from typing import Any

from langgraph.runtime import Runtime

from slipstream.evaluation.acceptance import Cause, Judgement, Need, Verdict, decide
from slipstream.evaluation.errors import (
    EngineError,
    ExposedError,
    InvalidOutputError,
    OutOfTimeError,
)

from .claiming import ClaimedError
from .context import LoopContext
from .inspection import known_judgement
from .measuring import meet, metered, reserve_s
from .state import LoopState
from .witness import OUT_OF_TIME


def measure(state: LoopState, runtime: Runtime[LoopContext]) -> dict[str, Any]:
    """Measure what the acceptance rule asks for; an engine's failure is a judgement too."""
    context = runtime.context
    judgements = dict(state.judgements)
    for hypothesis in state.hypotheses:
        if hypothesis not in judgements and (early := measure_variant(hypothesis, context)):
            judgements[hypothesis] = early
    return {"judgements": judgements}


def measure_variant(hypothesis: str, context: LoopContext) -> Judgement | None:
    """Measure one experiment; return a judgement only if measuring could not be finished."""
    experiment = context.memory.experiment(hypothesis)
    if experiment is None:
        raise RuntimeError(f"experiment {hypothesis} was never opened")
    rule, keep_s = context.rule(), reserve_s(context, experiment.rival)
    try:
        context.claims.hold(context.key_of(experiment.variant))
        # Whoever had the claim until now may have come to a verdict on the same tree.
        if known := known_judgement(experiment.variant, hypothesis, context):
            return known
        with metered(context, hypothesis):
            while isinstance(need := decide(context.memory.evidence(hypothesis), rule), Need):
                meet(context, experiment, need, keep_s)
    except OutOfTimeError:
        context.tape.note(f"{OUT_OF_TIME} {experiment.variant}", True)
        reason = "the run's time ended before it was decided"
        return Judgement(Verdict.INCONCLUSIVE, Cause.BUDGET, reason)
    except ClaimedError as error:
        return Judgement(Verdict.INCONCLUSIVE, Cause.CLAIMED, f"{experiment.variant}: {error}")
    except EngineError as error:
        return judgement_of(error, context)
    return None


def judgement_of(error: EngineError, context: LoopContext) -> Judgement:
    """Return the verdict on an engine that failed or broke the protocol; its log is kept."""
    verdict = Verdict.INVALID if isinstance(error, InvalidOutputError) else Verdict.FAILED
    cause = Cause.EXPOSED if isinstance(error, ExposedError) else Cause.ENGINE
    return Judgement(verdict, cause, str(error), log=context.logs.add(error.log))
