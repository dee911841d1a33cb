"""judge: the acceptance rule over what was measured. Code, never a model's opinion."""

from typing import Any

from langgraph.runtime import Runtime

from slipstream.evaluation.acceptance import Judgement, decide

from .context import LoopContext
from .state import LoopState


def judge(state: LoopState, runtime: Runtime[LoopContext]) -> dict[str, Any]:
    """Give every experiment whose measuring has ended its verdict."""
    context = runtime.context
    judgements = dict(state.judgements)
    for hypothesis in state.hypotheses:
        if hypothesis not in judgements and hypothesis in state.measured:
            if judgement := judge_variant(hypothesis, context):
                judgements[hypothesis] = judgement
            else:
                context.say("judge", f"{hypothesis}: the noise floor has changed: more is needed")
        if judged := judgements.get(hypothesis):
            context.say("judge", f"{hypothesis}: {judged.verdict.upper()}, {judged.reason}")
    return {"judgements": judgements}


def judge_variant(hypothesis: str, context: LoopContext) -> Judgement | None:
    """Return the rule's verdict on a measured experiment.

    None if it needs more than it did when it was measured: it stays in flight, and gets that.
    """
    decision = decide(context.memory.evidence(hypothesis), context.rule())
    return decision if isinstance(decision, Judgement) else None
