"""reflect: predicted against measured, gains to the board, and is there budget for more."""

import math
from typing import Literal

from langgraph.runtime import Runtime
from langgraph.types import Command

from slipstream.evaluation.acceptance import Cause, Verdict
from slipstream.memory.board import MAX_TEXT, Board

from .context import LoopContext
from .measuring import time_for_another
from .rematch import is_rematch
from .state import LoopState


def reflect(
    state: LoopState, runtime: Runtime[LoopContext]
) -> Command[Literal["survey", "verify"]]:
    """Say how wrong the prediction was; go on, or verify the champion and end."""
    context = runtime.context
    board = Board(context.memory.database, context.run)
    for name in state.judged:
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
    stop = state.stop or str(context.tape.observe(name, lambda: _why_stop(state, context)))
    changes = {"round": state.round + 1, "stop": stop}
    over = stop and not state.in_flight and context.parallel == 1
    return Command(goto="verify" if over else "survey", update=changes)


def _why_stop(state: LoopState, context: LoopContext) -> str:
    begun = sum(not is_rematch(one) for one in context.memory.hypotheses(state.run))
    if begun >= context.budget.experiments:
        return f"{begun} experiments done"
    if not time_for_another(context, state.champion, begun - len(state.in_flight)):
        minutes = math.ceil(context.budget.spent_s / 60)
        budget = f"the budget of {context.budget.minutes:g} minutes is spent"
        return f"{budget}: {minutes} used, too few left for another experiment"
    return ""
