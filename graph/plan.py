"""plan: the planner's hypotheses, each written down before anything is measured."""

import time
from dataclasses import replace
from typing import Any, Literal

from langgraph.runtime import Runtime
from langgraph.types import Command, Overwrite, Send

from slipstream.agents.roles import Briefing, Proposal
from slipstream.evaluation.errors import OutOfMoneyError, OutOfTimeError
from slipstream.memory.duplicates import Idea, find_refutation
from slipstream.memory.records import Hypothesis

from .briefing import brief
from .context import LoopContext
from .rematch import is_rematch, rematches
from .state import LoopState, Task

_MAX_ASKED = 4  # times that the planner is asked in a round, should it repeat what was refuted


def plan(
    state: LoopState, runtime: Runtime[LoopContext]
) -> Command[Literal["implement", "inspect", "verify"]]:
    """Ask the planner; one coder per hypothesis goes to work.

    Once the run stops nothing new is begun, and what is in flight lands.
    """
    flying, stop = state.in_flight, state.stop
    new: tuple[str, ...] = ()
    try:
        new = write_hypotheses(
            state.run,
            state.round,
            state.champion,
            runtime.context,
            flying=len(flying),
            stop=bool(stop),
        )["hypotheses"]
    except (OutOfMoneyError, OutOfTimeError) as error:
        stop = str(error)
    if not new and not flying:
        return Command(
            goto="verify", update={"hypotheses": (), "stop": stop or "nothing left to try"}
        )
    return Command(
        goto=[Send("implement", Task(name, state.champion)) for name in new] or "inspect",
        update={
            "hypotheses": (*flying, *new),
            "stop": stop,
            "variants": Overwrite({name: state.variants[name] for name in flying}),
            "judgements": Overwrite({}),
        },
    )


def write_hypotheses(
    run: str,
    round_: int,
    champion: str,
    context: LoopContext,
    *,
    flying: int = 0,
    stop: bool = False,
) -> dict[str, Any]:
    """Return this round's hypotheses; the ones on record if the round was planned before.

    Args:
        flying: how many of earlier rounds are in flight yet.
        stop: begin nothing new; only late winners still race.
    """
    memory = context.memory
    known = memory.hypotheses(run)
    hypotheses = [hypothesis for hypothesis in known if hypothesis.round == round_]
    free = context.parallel - flying
    if not hypotheses and free > 0:
        proposals = rematches(context, champion, round_)[:free]
        begun = sum(not is_rematch(hypothesis) for hypothesis in known)
        count = min(free - len(proposals), context.budget.experiments - begun)
        if count > 0 and not stop:
            briefing = brief(context, champion, known, round_)
            proposals += _propose(context, briefing, count)
        hypotheses = [
            Hypothesis(
                id=f"{run}-{len(known) + offset:03d}",
                run=run,
                round=round_,
                agent=proposal.agent or context.planner.name,
                parent=proposal.parent or champion,
                lever=proposal.lever,
                settings=proposal.settings,
                mechanism=proposal.mechanism,
                predicted_gain=proposal.predicted_gain,
                created_at=time.time(),
                target=_target(proposal, champion, context),
                prior_gain=proposal.prior_gain,
                risk=proposal.risk,
                falsifier=proposal.falsifier,
            )
            for offset, proposal in enumerate(proposals, start=1)
        ]
        memory.add_hypotheses(hypotheses)
    for hypothesis in hypotheses:
        context.say(
            "planner",
            f"{hypothesis.id}: {hypothesis.target or 'no change'} on {hypothesis.parent}, "
            f"expecting {hypothesis.predicted_gain:+.1%}: {hypothesis.mechanism}",
        )
    return {"hypotheses": tuple(hypothesis.id for hypothesis in hypotheses)}


def _propose(context: LoopContext, briefing: Briefing, count: int) -> list[Proposal]:
    """Ask the planner; refuse what was refuted before, and ask again a few times."""
    accepted: list[Proposal] = []
    refused: list[str] = []
    for _ in range(_MAX_ASKED):
        proposals = context.planner.plan(briefing, count - len(accepted))
        for proposal in proposals:
            target = _target(proposal, briefing.champion, context)
            if unjudged := context.unjudged(proposal.settings):
                context.say("planner", f"not {target}: {unjudged}")
                refused.append(f"not {target}: {unjudged}")
            elif found := find_refutation(context.memory, _idea(proposal, briefing, context)):
                why = (
                    f"not {target}: {found.experiment} was {found.verdict} ({found.reason}), and "
                    "its condition for another try doesn't hold"
                )
                context.say("planner", why)
                refused.append(why)
            else:
                accepted.append(proposal)
        if len(accepted) == count or not proposals:
            break
        asked = tuple(proposal.settings for proposal in proposals)
        planned = (*briefing.planned, *asked)
        briefing = replace(briefing, planned=planned, refused=tuple(refused))
    return accepted


def _idea(proposal: Proposal, briefing: Briefing, context: LoopContext) -> Idea:
    return Idea(
        lever=proposal.lever,
        target=_target(proposal, briefing.champion, context),
        mechanism=proposal.mechanism,
        challenge=context.challenge.name,
        machine=context.machine_id,
        tier=context.challenge.tier,
        engine=context.memory.variant(proposal.parent or briefing.champion).engine,
        champion_tps=briefing.champion_tps,
    )


def _target(proposal: Proposal, champion: str, context: LoopContext) -> str:
    if proposal.target:
        return proposal.target
    parent = context.memory.variant(proposal.parent or champion)
    return describe_change(proposal.settings, parent.settings)


def describe_change(settings: dict[str, str], parent: dict[str, str]) -> str:
    """Return `lever=value` for each setting that differs from the parent's."""
    changed = [f"{name}={v}" for name, v in sorted(settings.items()) if parent.get(name) != v]
    return ", ".join(changed)
