"""Puts together what a planner may look at, from memory."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import TypeAdapter

from slipstream.agents.roles import Briefing, Island, Left, Quoted, Trial
from slipstream.evaluation.acceptance import Cause
from slipstream.evaluation.errors import EngineError
from slipstream.evaluation.gates import GATES
from slipstream.evaluation.profiling import Profile
from slipstream.evaluation.statistics import Estimate
from slipstream.memory.board import Board
from slipstream.memory.claims import names
from slipstream.memory.leaderboard import TOP, Lineage, Pulse, leaderboard, pulse, speedups
from slipstream.memory.ledger import calibration, corrections, ledger
from slipstream.memory.records import Hypothesis
from slipstream.memory.search import search

from .context import LoopContext
from .directions import directions_of
from .lineage import tree_of
from .measuring import metered, reserve_s

_STAGNANT = 10
_PROFILE = TypeAdapter(Profile)
_STANDINGS, _POSTS, _HITS = 10, 6, 8


def brief(
    context: LoopContext, champion: str, planned: Sequence[Hypothesis], round_: int = 0
) -> Briefing:
    """Return the planner's briefing on the champion and on every trial of the same engine.

    Says so if the search stagnates, or has become a monoculture.
    """
    memory = context.memory
    experiments = memory.experiments_on(context.challenge.name, context.machine_id)
    variants = {variant.id: variant for variant in memory.variants()}
    engine = variants[champion].engine
    limit = GATES[context.challenge.tier].max_ppl_rise
    known = speedups(memory, context.challenge.name, context.machine_id)
    tps = {e.variant: e.tps for e in experiments if e.tps is not None}
    family = memory.run(context.run).family
    found = pulse(memory, context.challenge.name, context.machine_id)
    _raise_alarms(context, found)
    claimed = context.tape.observe(f"claimed in round {round_}", lambda: _claimed(context))
    trials = []
    for experiment in experiments:
        variant = variants[experiment.variant]
        if experiment.verdict is None or experiment.cause is None or variant.engine != engine:
            continue
        if experiment.cause is Cause.EXPOSED:  # it never ran
            continue
        rival = variants.get(experiment.rival)
        if rival is None:  # a baseline is no variant
            continue
        estimate = experiment.estimate
        base = known.get(rival.id)
        rise = experiment.ppl_rise_high
        trials.append(
            Trial(
                settings=variant.settings,
                changed={k: v for k, v in variant.settings.items() if rival.settings.get(k) != v},
                verdict=experiment.verdict,
                cause=experiment.cause,
                speed=base.mean + estimate.mean if base and estimate else None,
                ppl_excess=-limit if rise is None else rise - limit,
                rival_tps=tps.get(rival.id) or math.inf,
            )
        )
    return Briefing(
        challenge=context.challenge.name,
        shape=context.shape,
        machine=context.machine,
        bandwidth_gbps=context.bandwidth_gbps,
        champion=champion,
        champion_settings={**context.catalogue.seed, **variants[champion].settings},
        champion_tps=tps.get(champion) or 1.0,
        trials=tuple(trials),
        planned=tuple(hypothesis.settings for hypothesis in planned),
        claimed=tuple(variants[name].settings for name in claimed if name in variants),
        seed=context.seed,
        corrections=corrections(memory.database, context.planner.name, family, context.machine_id),
        ledger=tuple(ledger(memory.database, family=family, machine=context.machine_id)),
        islands=tuple(_islands(context, champion, known, found.lineages)),
        round=round_,
        rules=context.challenge,
        catalogue=context.catalogue,
        tree=tree_of(memory, context.variants, champion),
        standings=tuple(
            leaderboard(memory, context.challenge.name, context.machine_id, _STANDINGS)
        ),
        calibration=tuple(calibration(memory.database, family=family, machine=context.machine_id)),
        posts=tuple(Quoted(*post) for post in _posts(context, round_)),
        directions=tuple(_directions(context, round_)),
        left=_left(context, champion, len(planned), round_),
        profile=lambda: _profile(context, champion),
        search=lambda words: search(memory.database, words, limit=_HITS),
    )


def _claimed(context: LoopContext) -> list[str]:
    live = context.memory.claims.live(context.key_of(""))
    return names([holding for holding in live if holding.holder != context.run])


def _posts(context: LoopContext, round_: int) -> list[list[str]]:
    """Return the latest posts of others: source and text."""

    def read() -> list[list[str]]:
        board = Board(context.memory.database, context.run)
        posts = [*board.inbox(limit=_POSTS), *board.posts(limit=_POSTS)]
        others = {post.id: post for post in posts if post.author != context.run}
        latest = sorted(others.values(), key=lambda post: (-post.posted_at, post.id))[:_POSTS]
        return [[f"{post.author} on the board, in {post.channel}", post.text] for post in latest]

    return list(context.tape.observe(f"posts in round {round_}", read))


def _directions(context: LoopContext, round_: int) -> list[str]:
    name = f"directions in round {round_}"
    return list(context.tape.observe(name, lambda: list(directions_of(context))))


def _left(context: LoopContext, champion: str, planned: int, round_: int) -> Left:
    def look() -> list[float | None]:
        minutes = (context.budget.left_s - reserve_s(context, champion)) / 60
        return [round(max(0.0, minutes), 1), context.session.purse.left]

    minutes, usd = context.tape.observe(f"left in round {round_}", look)
    return Left(minutes, context.budget.experiments - planned, usd)


def _profile(context: LoopContext, champion: str) -> Profile | None:
    """Return a champion's profile, taken once in a run."""

    def take() -> dict[str, Any] | None:
        context.say("survey", f"taking {champion} apart", fleeting=True)
        try:
            with metered(context, None):
                found = context.evaluator.profile(champion, context.bandwidth_gbps)
        except EngineError as error:  # some engines have no account of themselves to give
            context.say("survey", f"no profile of {champion}: {error}")
            return None
        return dict(_PROFILE.dump_python(found, mode="json"))

    seen = context.tape.observe(f"profile of {champion}", take)
    return None if seen is None else _PROFILE.validate_python(seen)


def _raise_alarms(context: LoopContext, found: Pulse) -> None:
    if found.monoculture:
        context.say("survey", f"monoculture: the top {TOP} all descend from {found.monoculture}")
    if found.stagnation >= _STAGNANT:
        context.say("survey", f"stagnation: {found.stagnation} variants since the latest gain")


def _islands(
    context: LoopContext,
    champion: str,
    known: dict[str, Estimate],
    lineages: Sequence[Lineage],
) -> Iterator[Island]:
    """Yield the lineages that have something kept, but those that led to the champion."""
    if champion not in known:
        return
    line = {champion}
    ancestor = context.memory.variant(champion).parent
    while ancestor is not None:
        line.add(ancestor)
        ancestor = context.memory.variant(ancestor).parent
    engine = context.memory.variant(champion).engine
    for lineage in lineages:
        best = context.memory.variant(lineage.best)
        if lineage.root in line or not lineage.kept or best.id not in known:
            continue
        if best.engine == engine:
            speedup = math.exp(known[best.id].mean - known[champion].mean)
            settings = {**context.catalogue.seed, **best.settings}
            yield Island(best.id, settings, speedup, lineage.trials)
