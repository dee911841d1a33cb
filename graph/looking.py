"""look: after the verdict, the benchmarker may look once more, to tell explanations apart.

A profile, some more pairs, an ablation. What is asked for is cut down to the run's limits, and
nothing of it reaches the verdict: that stands before this node begins.
"""

import time
from contextlib import closing
from dataclasses import replace
from typing import Any

from langgraph.runtime import Runtime

from slipstream.agents.roles import Look, LookLimits
from slipstream.evaluation.acceptance import Judgement
from slipstream.evaluation.errors import (
    EngineError,
    OutOfMoneyError,
    OutOfTimeError,
    SlipstreamError,
    WorkerLostError,
)
from slipstream.evaluation.pairs import Stage
from slipstream.evaluation.statistics import estimate
from slipstream.kernels.variants import Tree
from slipstream.memory.records import Observation

from .context import LoopContext
from .measuring import metered, reserve_s
from .state import LoopState


def look(state: LoopState, runtime: Runtime[LoopContext]) -> dict[str, Any]:
    """Look at what the benchmarker wants to see of each measured experiment."""
    for name in state.judged:
        look_at(name, state.judgements[name], runtime.context)
    return {}


def look_at(hypothesis_id: str, judgement: Judgement, context: LoopContext) -> None:
    """Let the benchmarker look at one experiment; what it sees goes to memory."""
    experiment = context.memory.experiment(hypothesis_id)
    if judgement.gain is None or experiment is None:
        return  # it didn't run, or not here
    candidate = context.variants.read(experiment.variant)
    rival = context.variants.read(experiment.rival)
    hypothesis = context.memory.hypothesis(hypothesis_id)
    try:
        looks = context.benchmarker.look(
            hypothesis, judgement, changes(candidate, rival), LookLimits()
        )
    except (OutOfMoneyError, OutOfTimeError, SlipstreamError) as error:
        context.say("benchmarker", f"{hypothesis_id}: no further look: {error}")
        return
    known = {one.id for one in context.memory.observations(hypothesis_id)}
    for index, one in enumerate(looks[: LookLimits().looks]):
        name = f"{hypothesis_id}-look-{index}"
        one = replace(one, pairs=min(one.pairs, LookLimits().pairs))
        if name in known:
            continue

        def see(one: Look = one) -> dict[str, Any] | None:
            share = one.pairs / context.challenge.acceptance.confirm_pairs
            if context.budget.left_s < (1 + share) * reserve_s(context, experiment.rival):
                return None
            with metered(context, hypothesis_id):
                return _see(one, candidate, rival, context)

        if (seen := context.tape.observe(name, see)) is None:
            continue
        observation = Observation(name, hypothesis_id, one.kind, **seen, seen_at=time.time())
        context.memory.add_observation(observation)
        told = f"{one.kind} {seen['subject']}: {seen['text']}"
        context.say("benchmarker", f"{hypothesis_id}: {told} (asked: {one.why or 'no reason'})")


def changes(candidate: Tree, rival: Tree) -> list[str]:
    """Return the levers and files in which two trees differ."""
    mine, other = candidate.settings, rival.settings
    levers = sorted(
        name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name)
    )
    paths = candidate.files.keys() | rival.files.keys()
    files = sorted(p for p in paths if candidate.files.get(p) != rival.files.get(p))
    return levers + [path for path in files if path != "levers.json"]


def without(candidate: Tree, rival: Tree, taken_back: tuple[str, ...]) -> Tree:
    """Return the candidate with some of its changes taken back to what the rival has."""
    files = dict(candidate.files)
    settings = dict(candidate.settings)
    for name in taken_back:
        if name in rival.files:
            files[name] = rival.files[name]
        elif name in files:
            del files[name]
        elif name in rival.settings:
            settings[name] = rival.settings[name]
    return Tree(files).with_settings(settings)


def _see(one: Look, candidate: Tree, rival: Tree, context: LoopContext) -> dict[str, Any]:
    subject, tree = candidate.id, candidate
    try:
        if one.kind == "profile":
            found = context.evaluator.profile(candidate.id, context.bandwidth_gbps)
            rows = [f"{c.name} {1e6 * c.time_s:.0f} µs" for c in found.components[:5]]
            text = f"a token takes {1e3 * found.token_s:.3f} ms: {', '.join(rows)}"
            return {"subject": subject, "text": text, "figures": {"token_s": found.token_s}}
        if one.kind == "ablation":
            tree = without(candidate, rival, one.without)
            subject = f"without {', '.join(one.without)}"
            context.variants.add(tree)
        attempts = dict.fromkeys(range(one.pairs), 0)
        pairs = context.evaluator.pairs(tree.id, rival.id, Stage.LOOK, attempts)
        with closing(pairs) as measured:
            ratios = [pair.log_ratio for pair in measured if not pair.void]
    except (EngineError, WorkerLostError) as error:
        return {"subject": subject, "text": f"it failed: {error}", "figures": {}}
    finally:
        if tree is not candidate:
            context.evaluator.release(tree.id)
    gain = estimate(ratios)
    low, high = gain.interval()
    interval = f"95 % interval {low - 1:+.1%} to {high - 1:+.1%}, {gain.num_pairs} pairs"
    text = f"{gain.ratio - 1:+.1%} against the rival ({interval})"
    return {"subject": subject, "text": text, "figures": {"log_ratios": ratios}}
