"""record: verdict, finding and time in one transaction; the winner becomes champion."""

import time
from typing import Any

from langgraph.runtime import Runtime

from slipstream.agents.offline_benchmarker import OfflineBenchmarker
from slipstream.agents.roles import Explanation
from slipstream.evaluation.acceptance import Cause, Judgement, Verdict
from slipstream.evaluation.errors import OutOfMoneyError, OutOfTimeError, SlipstreamError
from slipstream.evaluation.trust import exposure
from slipstream.memory.claims import StaleClaimError
from slipstream.memory.records import EDIT, Experiment, Finding, Hypothesis, is_edit

from .claiming import ClaimedError
from .context import LoopContext
from .rematch import is_rematch
from .state import LoopState


def record(state: LoopState, runtime: Runtime[LoopContext]) -> dict[str, Any]:
    """Write the round down and crown its best kept variant."""
    context = runtime.context
    best = 0.0
    champion = state.champion
    written: dict[str, Judgement] = {}
    for hypothesis in state.judged:
        variant = state.variants[hypothesis]
        judgement = write_down(hypothesis, state.judgements[hypothesis], context)
        written[hypothesis] = judgement
        gain = judgement.gain.mean if judgement.gain else 0.0
        if judgement.verdict is not Verdict.KEPT:
            continue
        if _rival(hypothesis, context) != state.champion:
            text = f"{hypothesis} landed late: {state.champion} is the champion by now"
            context.say("benchmarker", text)
        elif gain > best:
            best, champion = gain, variant
    landed = {state.variants[name] for name in state.judged}
    rivals = {_rival(name, context) for name in state.in_flight}
    for variant in {state.champion, *landed} - rivals - {champion}:
        context.evaluator.release(variant)
    if champion != state.champion:
        context.workshop.promote(champion)
    return {"champion": champion, "judgements": written}


def _rival(experiment: str, context: LoopContext) -> str:
    found = context.memory.experiment(experiment)
    return found.rival if found else ""


def write_down(hypothesis_id: str, judgement: Judgement, context: LoopContext) -> Judgement:
    """Record one experiment's outcome and what was learned from it; return what was written."""
    hypothesis = context.memory.hypothesis(hypothesis_id)
    explanation = _explain(hypothesis, judgement, context)
    parent = context.memory.variant(hypothesis.parent).settings
    experiment = context.memory.experiment(hypothesis_id)
    engine = context.memory.variant(experiment.variant).engine if experiment else ""
    values = [v for name, v in sorted(hypothesis.settings.items()) if parent.get(name) != v]
    if is_edit(hypothesis):
        values = [hypothesis.target.removeprefix(f"{EDIT} ")]
    finding = Finding(
        experiment=hypothesis_id,
        lever=hypothesis.lever,
        value=", ".join(values),
        predicted_gain=hypothesis.predicted_gain,
        mechanism=explanation.mechanism,
        reopen=explanation.reopen,
        unsafe=bool(exposure(engine, context.no_sandbox)),
        learned_at=time.time(),
    )
    # A rematch tells two variants apart, and nothing new about levers.
    learned = None if is_rematch(hypothesis) else finding
    return _write(hypothesis_id, experiment, judgement, learned, context)


def _explain(hypothesis: Hypothesis, judgement: Judgement, context: LoopContext) -> Explanation:
    seen, who = context.memory.observations(hypothesis.id), context.benchmarker.name
    try:
        return context.benchmarker.explain(hypothesis, judgement, seen)
    except (OutOfMoneyError, OutOfTimeError, SlipstreamError) as error:
        # A verdict doesn't wait for words.
        context.say("benchmarker", f"{hypothesis.id}: not explained by {who}: {error}")
        return OfflineBenchmarker().explain(hypothesis, judgement, seen)


def _write(
    name: str,
    experiment: Experiment | None,
    judgement: Judgement,
    finding: Finding | None,
    context: LoopContext,
) -> Judgement:
    """Write the verdict, under the claim if it rests on measurements."""
    while experiment is not None and judgement.gain is not None:
        try:
            claim = context.claims.hold(context.key_of(experiment.variant))
        except ClaimedError as error:  # lost meanwhile, and somebody else measures it again
            reason = f"claim lost before the verdict: {error}"
            judgement = Judgement(Verdict.INCONCLUSIVE, Cause.CLAIMED, reason)
            break
        context.claims.drop(claim)
        try:
            context.memory.record(name, judgement, finding, context.budget.spent_s, claim)
        except StaleClaimError:
            continue
        return judgement
    context.memory.record(name, judgement, finding, context.budget.spent_s)
    if experiment is not None and (held := context.claims.held(context.key_of(experiment.variant))):
        context.claims.drop(held)
        context.memory.claims.release(held)
    return judgement
