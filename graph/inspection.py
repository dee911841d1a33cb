"""inspect: what can be decided without running anything."""

from typing import Any

from langgraph.runtime import Runtime

from slipstream.evaluation.acceptance import Cause, Judgement, Verdict
from slipstream.evaluation.inspector import inspect_change
from slipstream.evaluation.trust import exposure
from slipstream.memory.records import Experiment

from .context import LoopContext
from .ladder import byte_veto
from .rematch import is_rematch
from .state import LoopState

_OPEN = (
    None,
    *(Cause.POWER, Cause.EXPOSED, Cause.BUDGET, Cause.CLAIMED, Cause.CODER, Cause.REFUSED),
    *(Cause.VETO, Cause.SCREENED, Cause.UNREACHED),
)


def inspect(state: LoopState, runtime: Runtime[LoopContext]) -> dict[str, Any]:
    """Judge at once what was measured before, and what may not run."""
    context = runtime.context
    judgements = dict(state.judgements)
    for hypothesis, variant in state.variants.items():
        if context.crew.has(hypothesis):
            continue
        _say_warnings(hypothesis, variant, context)
        if hypothesis not in judgements and (
            found := inspect_variant(hypothesis, variant, context)
        ):
            judgements[hypothesis] = found
            context.say("inspect", f"{hypothesis}: {found.reason}")
    return {"judgements": judgements}


def _say_warnings(hypothesis: str, variant: str, context: LoopContext) -> None:
    """Name lines of changed source that deserve a second look. They decide nothing."""
    own = context.memory.variant(variant)
    if own.parent is None or context.memory.variant(own.parent).engine == own.engine:
        return  # only levers changed
    before, after = context.variants.read(own.parent), context.variants.read(variant)
    for found in inspect_change(before.files, after.files):
        where = f"{found.path}:{found.line}"
        context.say("inspect", f"{hypothesis}: {where} {found.what}: {found.code}")


def inspect_variant(hypothesis: str, variant: str, context: LoopContext) -> Judgement | None:
    """Return a judgement if one is possible before measuring."""
    if known := known_judgement(variant, hypothesis, context):
        return known
    if reason := refused(context.memory.variant(variant).engine, context):
        return Judgement(Verdict.FAILED, Cause.EXPOSED, reason)
    experiment = context.memory.experiment(hypothesis)
    if experiment is not None and (reason := byte_veto(experiment, context)):
        return Judgement(Verdict.REJECTED, Cause.VETO, reason)
    return None


def known_judgement(variant: str, hypothesis: str, context: LoopContext) -> Judgement | None:
    """Return the verdict that the same tree got before, if it did."""
    earlier = recorded_result(variant, hypothesis, context)
    if earlier is None:
        return None
    reason = f"the same tree was judged in {earlier.id}: {earlier.reason}"
    return Judgement(earlier.verdict or Verdict.FAILED, earlier.cause or Cause.ENGINE, reason)


def recorded_result(variant: str, hypothesis: str, context: LoopContext) -> Experiment | None:
    """Return an earlier conclusive experiment on the same content, challenge and machine.

    A rematch is between two that were judged before: there it finds none.
    """
    if is_rematch(context.memory.hypothesis(hypothesis)):
        return None
    for experiment in context.memory.experiments(variant=variant):
        run = context.memory.run(experiment.run)
        same = (run.challenge, run.machine) == (context.challenge.name, context.machine_id)
        conclusive = experiment.cause not in _OPEN
        if same and conclusive and experiment.id != hypothesis:
            return experiment
    return None


def refused(engine: str, context: LoopContext) -> str:
    """Return why a source, by its hash, may not run here; empty if it may."""
    return "" if context.unsafe_local else exposure(engine, context.no_sandbox)
