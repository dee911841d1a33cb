"""plan: the planner's hypotheses, each written down before anything is measured."""

import time
from typing import Any, Literal

from langgraph.runtime import Runtime
from langgraph.types import Command, Overwrite, Send

from slipstream.memory.records import Hypothesis

from .briefing import brief
from .context import LoopContext
from .state import LoopState, Task


def plan(
    state: LoopState, runtime: Runtime[LoopContext]
) -> Command[Literal["implement", "verify"]]:
    """Ask the planner; one coder per hypothesis goes to work."""
    changes = write_hypotheses(state.run, state.round, state.champion, runtime.context)
    if not changes["hypotheses"]:
        return Command(goto="verify", update={**changes, "stop": "nothing left to try"})
    return Command(
        goto=[Send("implement", Task(hypothesis)) for hypothesis in changes["hypotheses"]],
        update={**changes, "variants": Overwrite({}), "judgements": Overwrite({})},
    )


def write_hypotheses(run: str, round_: int, champion: str, context: LoopContext) -> dict[str, Any]:
    """Return this round's hypotheses; the ones on record if the round was planned before."""
    memory = context.memory
    known = memory.hypotheses(run)
    hypotheses = [hypothesis for hypothesis in known if hypothesis.round == round_]
    if not hypotheses:
        count = min(context.batch, context.budget.experiments - len(known))
        proposals = context.planner.plan(brief(context, champion, known), count)
        hypotheses = [
            Hypothesis(
                id=f"{run}-{len(known) + offset:03d}",
                run=run,
                round=round_,
                agent=context.planner.name,
                parent=champion,
                lever=proposal.lever,
                settings=proposal.settings,
                mechanism=proposal.mechanism,
                predicted_gain=proposal.predicted_gain,
                created_at=time.time(),
            )
            for offset, proposal in enumerate(proposals, start=1)
        ]
        memory.add_hypotheses(hypotheses)
    for hypothesis in hypotheses:
        change = describe_change(hypothesis.settings, memory.variant(champion).settings)
        context.say(
            "planner",
            f"{hypothesis.id}: {change} on {champion}, expecting "
            f"{hypothesis.predicted_gain:+.1%}: {hypothesis.mechanism}",
        )
    return {"hypotheses": tuple(hypothesis.id for hypothesis in hypotheses)}


def describe_change(settings: dict[str, str], parent: dict[str, str]) -> str:
    """Return `lever=value` for each setting that differs from the parent's."""
    changed = [f"{name}={v}" for name, v in sorted(settings.items()) if parent.get(name) != v]
    return ", ".join(changed) or "no change"
