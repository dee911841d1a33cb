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
            judgements[hypothesis] = judge_variant(hypothesis, context)
        if judged := judgements.get(hypothesis):
            context.say("judge", f"{hypothesis}: {judged.verdict.upper()}, {judged.reason}")
    return {"judgements": judgements}


def judge_variant(hypothesis: str, context: LoopContext) -> Judgement:
    """Return the rule's verdict on a measured experiment."""
    decision = decide(context.memory.evidence(hypothesis), context.rule())
    if not isinstance(decision, Judgement):
        raise RuntimeError(f"experiment {hypothesis} still needs {decision}")
    return decision
