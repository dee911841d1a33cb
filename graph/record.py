"""record: verdict, finding and time in one transaction; the winner becomes champion."""

import time
from typing import Any

from langgraph.runtime import Runtime

from slipstream.evaluation.acceptance import Judgement, Verdict
from slipstream.evaluation.trust import exposure
from slipstream.memory.records import Finding

from .context import LoopContext
from .state import LoopState


def record(state: LoopState, runtime: Runtime[LoopContext]) -> dict[str, Any]:
    """Write the round down and crown its best kept variant."""
    context = runtime.context
    best = 0.0
    champion = state.champion
    for hypothesis in state.hypotheses:
        judgement, variant = state.judgements[hypothesis], state.variants[hypothesis]
        write_down(hypothesis, judgement, context)
        gain = judgement.gain.mean if judgement.gain else 0.0
        if judgement.verdict is Verdict.KEPT and gain > best:
            best, champion = gain, variant
    for variant in {state.champion, *state.variants.values()} - {champion}:
        context.evaluator.release(variant)
    if champion != state.champion:
        context.workshop.promote(champion)
    return {"champion": champion}


def write_down(hypothesis_id: str, judgement: Judgement, context: LoopContext) -> None:
    """Record one experiment's outcome and what was learned from it."""
    hypothesis = context.memory.hypothesis(hypothesis_id)
    explanation = context.benchmarker.explain(hypothesis, judgement)
    parent = context.memory.variant(hypothesis.parent).settings
    experiment = context.memory.experiment(hypothesis_id)
    engine = context.memory.variant(experiment.variant).engine if experiment else ""
    values = [v for name, v in sorted(hypothesis.settings.items()) if parent.get(name) != v]
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
    context.memory.record(hypothesis_id, judgement, finding, context.budget.spent_s)
