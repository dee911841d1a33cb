"""measure: every variant of the round against the champion, until the rule can decide.

With several experiments in flight each is measured by a thread of its own, and this node ends as
soon as one has landed: the next round begins, and those that fly on belong to it too.
"""

from functools import partial
from typing import Any

from langgraph.runtime import Runtime

from slipstream.evaluation.acceptance import (
    Cause,
    Evidence,
    Judgement,
    Need,
    Rule,
    Verdict,
    decide,
)
from slipstream.evaluation.errors import (
    EngineError,
    ExposedError,
    InvalidOutputError,
    OutOfMoneyError,
    OutOfTimeError,
    UnreachedError,
)
from slipstream.evaluation.plans import Plan
from slipstream.memory.records import Experiment

from .claiming import ClaimedError
from .context import LoopContext
from .inspection import known_judgement
from .ladder import Climb
from .measuring import meet, metered, reserve_s
from .screening import screen_here
from .state import LoopState
from .witness import UNMEASURED


def measure(state: LoopState, runtime: Runtime[LoopContext]) -> dict[str, Any]:
    """Measure what the acceptance rule asks for; an engine's failure is a judgement too."""
    context = runtime.context
    if context.parallel == 1:
        ended = {name: measure_variant(name, context) for name in state.in_flight}
    else:
        ended = _landed(state, context)
    early = {name: judgement for name, judgement in ended.items() if judgement}
    return {"measured": tuple(ended), "judgements": {**state.judgements, **early}}


def _landed(state: LoopState, context: LoopContext) -> dict[str, Judgement | None]:
    """Let all fly that have no judgement; return what has landed, at least one if any flies."""
    crew, flying = context.crew, set[str]()
    for name in state.in_flight:
        # Of two that made the same tree the second waits for the verdict on the first.
        if (tree := _open(name, context).variant) not in flying:
            crew.start(name, partial(measure_variant, name, context))
        flying.add(tree)

    def look() -> list[str]:
        # What needs no measuring is not kept waiting.
        return crew.landed(context.check_stop) if not state.judged else crew.landed_already()

    # A run that is replayed, or goes on after a crash, waits for the same ones.
    names = context.tape.observe(f"landed in round {state.round}", look)
    return crew.results([name for name in names if name in state.in_flight])


def _open(hypothesis: str, context: LoopContext) -> Experiment:
    experiment = context.memory.experiment(hypothesis)
    if experiment is None:
        raise RuntimeError(f"experiment {hypothesis} was never opened")
    return experiment


def measure_variant(hypothesis: str, context: LoopContext) -> Judgement | None:
    """Measure one experiment; return a judgement only if measuring could not be finished."""
    experiment = _open(hypothesis, context)
    climb = Climb(context, experiment)
    decided, early = _measured(experiment, climb, context)
    climb.ends(decided)
    return decided if early else None


def _measured(experiment: Experiment, climb: Climb, context: LoopContext) -> tuple[Judgement, bool]:
    """Measure one experiment; return the judgement that ended it, and whether that was early."""
    hypothesis = experiment.id
    rule, keep_s = context.rule(), reserve_s(context, experiment.rival)
    try:
        context.claims.hold(context.key_of(experiment.variant))
        # Whoever had the claim until now may have come to a verdict on the same tree.
        if known := known_judgement(experiment.variant, hypothesis, context):
            return known, True
        if reason := screen_here(experiment, context):
            return Judgement(Verdict.REJECTED, Cause.SCREENED, reason), True
        with metered(context, hypothesis):
            while isinstance(
                decided := decide(evidence := context.memory.evidence(hypothesis), rule), Need
            ):
                context.evaluator.expect(plan_of(experiment, rule, evidence))
                with climb.step(decided):
                    meet(context, experiment, decided, keep_s)
    except (OutOfMoneyError, OutOfTimeError, UnreachedError) as error:
        told = {"kind": type(error).__name__, "reason": str(error)}
        context.tape.note(f"{UNMEASURED} {experiment.variant}", told)
        cause = Cause.UNREACHED if isinstance(error, UnreachedError) else Cause.BUDGET
        return Judgement(Verdict.INCONCLUSIVE, cause, str(error)), True
    except ClaimedError as error:
        reason = f"{experiment.variant}: {error}"
        return Judgement(Verdict.INCONCLUSIVE, Cause.CLAIMED, reason), True
    except EngineError as error:
        return judgement_of(error, context), True
    return decided, False


def plan_of(experiment: Experiment, rule: Rule, evidence: Evidence) -> Plan:
    """Return the whole experiment as an errand."""
    variant, rival = experiment.variant, experiment.rival
    return Plan(experiment.id, variant, rival, rule, evidence, num_documents=rule.num_documents)


def judgement_of(error: EngineError, context: LoopContext) -> Judgement:
    """Return the verdict on an engine that failed or broke the protocol; its log is kept."""
    verdict = Verdict.INVALID if isinstance(error, InvalidOutputError) else Verdict.FAILED
    cause = Cause.EXPOSED if isinstance(error, ExposedError) else Cause.ENGINE
    return Judgement(verdict, cause, str(error), log=context.logs.add(error.log))
