"""implement: a coder turns one hypothesis into a variant that runs on a tiny input."""

import time
from typing import Any

from langgraph.runtime import Runtime

from slipstream.agents.roles import CoderError
from slipstream.evaluation.acceptance import Cause, Judgement, Verdict
from slipstream.evaluation.errors import EngineError, OutOfMoneyError, OutOfTimeError
from slipstream.kernels.variants import Tree
from slipstream.memory.records import Experiment, Hypothesis, Variant

from .context import LoopContext
from .inspection import recorded_result, refused
from .ladder import Tries
from .lineage import commit_lineage, tree_of
from .measure import judgement_of
from .rematch import is_rematch
from .state import Task
from .workbench import LoopBench


def implement(state: Task, runtime: Runtime[LoopContext]) -> dict[str, Any]:
    """Make the variant of one hypothesis; repair it as often as the run allows."""
    return build_variant(state.hypothesis, runtime.context, state.champion)


def build_variant(hypothesis_id: str, context: LoopContext, champion: str = "") -> dict[str, Any]:
    """Return the hypothesis' variant, and a judgement if it could not be made to run.

    A hypothesis of which no variant came names the one that it started from.

    Args:
        champion: whom it will race; by default the variant that it starts from.
    """
    hypothesis = context.memory.hypothesis(hypothesis_id)
    parent = tree_of(context.memory, context.variants, hypothesis.parent)
    tries = Tries()
    tree, failure = _written(hypothesis, parent, context, tries)
    _keep(tree, hypothesis, champion or hypothesis.parent, context)
    tries.note(context, hypothesis_id)
    changes: dict[str, Any] = {"variants": {hypothesis_id: tree.id}}
    outcome = ""
    if failure is not None:
        changes["judgements"] = {hypothesis_id: failure}
        outcome = f" is {failure.verdict}: {failure.reason}"
    context.say("coder", f"{hypothesis_id}: variant {tree.id}{outcome}")
    return changes


def _written(
    hypothesis: Hypothesis, parent: Tree, context: LoopContext, tries: Tries
) -> tuple[Tree, Judgement | None]:
    """Return what the coder made of a hypothesis, and what is wrong with it."""
    if is_rematch(hypothesis):
        return parent, None
    bench = LoopBench(context, hypothesis)
    try:
        tree = context.coder.implement(hypothesis, parent, bench)
    except CoderError as error:
        return parent, Judgement(Verdict.FAILED, Cause.CODER, str(error))
    except (OutOfMoneyError, OutOfTimeError) as error:
        return parent, Judgement(Verdict.INCONCLUSIVE, Cause.CODER, str(error))
    failure = _try_out(tree, context, hypothesis, tries)
    for _ in range(context.max_repairs):
        if failure is None or failure.cause is not Cause.ENGINE:
            break
        mended = _repaired(tree, failure, hypothesis, bench, context)
        if mended is None:
            break
        context.evaluator.release(tree.id)
        tree, failure = mended, _try_out(mended, context, hypothesis, tries)
    return tree, failure


def _repaired(
    tree: Tree,
    failure: Judgement,
    hypothesis: Hypothesis,
    bench: LoopBench,
    context: LoopContext,
) -> Tree | None:
    name = f"failure of {tree.id} for {hypothesis.id}"  # a second start may print another log
    told = str(context.tape.observe(name, lambda: _told(failure, context)))
    try:
        return context.coder.repair(hypothesis, tree, told, bench)
    except (OutOfMoneyError, OutOfTimeError) as error:
        context.say("coder", f"{hypothesis.id}: no repair: {error}")
        return None


def _told(failure: Judgement, context: LoopContext) -> str:
    """Return the engine's error with the end of its log: a coder repairs from the real thing."""
    if not failure.log:
        return failure.reason
    return f"{failure.reason}\n{context.logs.read(failure.log)[-4000:]}"


def _try_out(
    tree: Tree, context: LoopContext, hypothesis: Hypothesis, tries: Tries
) -> Judgement | None:
    """Run the tree on a tiny input, unless that is pointless; return what is wrong with it."""
    if reason := context.refusal(tree.settings):
        return Judgement(Verdict.FAILED, Cause.ENGINE, reason)
    if refused(tree.engine_id, context) or recorded_result(tree.id, hypothesis.id, context):
        return None  # `inspect` will say so
    context.variants.add(tree)
    try:
        tries.try_out(lambda: context.evaluator.smoke(tree.id))
    except EngineError as error:
        return judgement_of(error, context)
    return None


def _keep(tree: Tree, hypothesis: Hypothesis, rival: str, context: LoopContext) -> None:
    """Store the tree, commit it to the workshop and open its experiment."""
    now = time.time()
    context.variants.add(tree)
    message = (
        f"{hypothesis.id}: {hypothesis.lever}\n\n{hypothesis.mechanism}\n"
        f"Predicted: {hypothesis.predicted_gain:+.1%}\n"
    )
    with context.workshop_lock:
        if hypothesis.parent != rival:  # of another lineage, perhaps of another run
            commit_lineage(context, hypothesis.parent)
        context.workshop.commit(tree, hypothesis.parent, message, int(now))
    context.memory.add_variant(
        Variant(tree.id, hypothesis.parent, tree.engine_id, tree.settings, context.run, now)
    )
    context.memory.add_experiment(
        Experiment(hypothesis.id, context.run, hypothesis.id, tree.id, rival, now)
    )
