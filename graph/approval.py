"""approve: with --approve, a person looks at each change before it is measured.

The graph stops here (LangGraph's `interrupt`) and goes on with the answers, in whatever process:
a run that is killed while it waits asks again when it is resumed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from langgraph.runtime import Runtime
from langgraph.types import interrupt

from slipstream.evaluation.acceptance import Cause, Judgement, Verdict
from slipstream.kernels.variants import difference
from slipstream.memory.steering import answer, approval

from .context import LoopContext
from .lineage import tree_of
from .state import LoopState

# Asks whoever watches, for at most a second: (approved, what they say), or None.
Ask = Callable[[dict[str, str]], tuple[bool, str] | None]


def approve(state: LoopState, runtime: Runtime[LoopContext]) -> dict[str, Any]:
    """Ask about what is about to be measured; what is refused isn't."""
    context = runtime.context
    waiting = [h for h in state.in_flight if not context.crew.has(h)]
    if not context.approve or not waiting:
        return {}
    # What `interrupt` returns: hypothesis → [approved, by whom, what they said].
    answers = interrupt([question(name, state.variants[name], context) for name in waiting])
    judgements = dict(state.judgements)
    for name in waiting:
        approved, author, text = answers[name]
        if not approved:
            reason = f"refused by {author}" + (f": {text}" if text else "")
            judgements[name] = Judgement(Verdict.INCONCLUSIVE, Cause.REFUSED, reason)
        context.say("approve", f"{name}: {'approved' if approved else 'refused'} by {author}")
    return {"judgements": judgements}


def wait_for_answers(
    questions: list[dict[str, str]], context: LoopContext, ask: Ask
) -> dict[str, list[Any]]:
    """Return what people say to each change; the run's time stands still meanwhile."""
    answers: dict[str, list[Any]] = {}
    for one in questions:
        name = one["hypothesis"]
        wait = partial(_wait, one, context, ask)
        with context.budget.paused():
            answers[name] = context.tape.observe(f"approval of {name}", wait)
    return answers


def _wait(one: dict[str, str], context: LoopContext, ask: Ask) -> list[Any]:
    name = one["hypothesis"]
    context.say("approve", f"{name} waits: {one['idea']}")
    context.say("approve", f"`slipstream approve {name}` or `slipstream approve {name} --refuse`")
    while (said := approval(context.memory.database, name)) is None:
        context.check_stop()
        if (told := ask(one)) is not None:
            answer(context.memory, name, "the terminal", approved=told[0], text=told[1])
    return [said.approved, said.author, said.text]


def question(hypothesis: str, variant: str, context: LoopContext) -> dict[str, str]:
    """Return what a person needs in order to decide: the idea, and the change."""
    idea = context.memory.hypothesis(hypothesis)
    before = tree_of(context.memory, context.variants, idea.parent)
    return {
        "hypothesis": hypothesis,
        "variant": variant,
        "idea": f"{idea.target or idea.lever}, expecting {idea.predicted_gain:+.1%}: "
        f"{idea.mechanism}",
        "diff": difference(before, context.variants.read(variant)),
    }
