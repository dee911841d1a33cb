"""reflect: predicted against measured, gains to the board, and is there budget for more."""

import math
from typing import Literal

from langgraph.runtime import Runtime
from langgraph.types import Command

from slipstream.evaluation.acceptance import Cause, Verdict
from slipstream.memory.board import MAX_TEXT, Board

from .context import LoopContext
from .measuring import reserve_s
from .state import LoopState


def reflect(
    state: LoopState, runtime: Runtime[LoopContext]
) -> Command[Literal["survey", "verify"]]:
    """Say how wrong the prediction was; go on, or verify the champion and end."""
    context = runtime.context
    board = Board(context.memory.database, context.run)
    for name in state.hypotheses:
        hypothesis, judgement = context.memory.hypothesis(name), state.judgements[name]
        if judgement.verdict is Verdict.KEPT and judgement.gain is not None:
            text = f"{hypothesis.target or hypothesis.lever}: {judgement.reason}"
            board.post(text[:MAX_TEXT], channel="gains", occasion=name)
        if judgement.gain is not None and judgement.cause in (Cause.GAIN, Cause.NO_GAIN):
            measured = judgement.gain.ratio - 1
            context.say(
                "reflect",
                f"{name}: predicted {hypothesis.predicted_gain:+.1%}, measured {measured:+.1%}",
            )
    name = f"stop after round {state.round}"
    stop = str(context.tape.observe(name, lambda: _why_stop(state, context)))
    changes = {"round": state.round + 1, "stop": stop}
    return Command(goto="verify" if stop else "survey", update=changes)


def _why_stop(state: LoopState, context: LoopContext) -> str:
    done = len(context.memory.hypotheses(state.run))
    if done >= context.budget.experiments:
        return f"{done} experiments done"
    # Another round is begun only if one like those before would end within the budget.
    per_round = context.budget.spent_s / (state.round + 2)
    needed = per_round + reserve_s(context, state.champion)
    if context.budget.left_s < needed:
        minutes = math.ceil(context.budget.spent_s / 60)
        return f"the budget of {context.budget.minutes:g} minutes is spent ({minutes} used)"
    return ""
