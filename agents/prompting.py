"""A briefing as a prompt: figures from code as they are, words of others as quoted data."""

import math
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.gates import GATES
from slipstream.kernels.catalogue import Catalogue
from slipstream.kernels.census import ModelShape
from slipstream.kernels.levers import Machine
from slipstream.memory.records import Hypothesis

from .quoting import quote
from .roles import Briefing, Workbench

_TOP = 8
_LATEST = 12
_MAX_DIRECTIONS = 6000


@cache
def prompt_of(role: str, *, serves: bool = False) -> str:
    """Return a role's instructions: `planner.md` and its like, beside this file.

    Coders are told the rules of an engine besides, or those of one that is a server.
    """
    rules = "server_rules" if serves else "engine_rules"
    names = [role, rules] if role.endswith("coder") else [role]
    folder = Path(__file__).resolve().parent
    return "\n".join((folder / f"{name}.md").read_text() for name in names)


def describe(briefing: Briefing) -> str:
    """Return all that a planner is told before it asks for more."""
    task = describe_task(briefing.shape, briefing.machine, briefing.rules)
    return "\n\n".join(
        f"## {title}\n{text}"
        for title, text in (
            ("Challenge", f"{briefing.challenge}\n{task}"),
            ("Champion", _champion(briefing)),
            ("Where a token's time goes", _profile(briefing)),
            ("Levers", _levers(briefing)),
            ("Leaderboard", _standings(briefing)),
            ("Trials, the latest last", _trials(briefing)),
            ("What is known of levers on this kind of machine", _ledger(briefing)),
            ("Being tried by others right now", _claimed(briefing)),
            ("How predictions came true", _calibration(briefing)),
            ("Refused in this round", _refused(briefing)),
            ("Board", _posts(briefing)),
            ("Directions of the researcher", _lines(briefing.directions)[-_MAX_DIRECTIONS:]),
            ("Left of the budget", _left(briefing)),
        )
        if text
    )


def describe_task(shape: ModelShape, machine: Machine, rules: Challenge | None) -> str:
    """Return the model, the machine, the workload and the gate, in words."""
    lines = [
        f"model: {shape.family or 'decoder'}, {shape.num_layers} layers, hidden "
        f"{shape.hidden_size}, MLP {shape.intermediate_size}, {shape.num_heads} query and "
        f"{shape.num_kv_heads} key/value heads of {shape.head_dim}, vocabulary {shape.vocab_size}",
        f"machine: {machine.device}, {machine.num_cores} cores, "
        f"{'a' if machine.has_compiler else 'no'} compiler",
    ]
    if rules is not None:
        work, gate = rules.workload, GATES[rules.tier]
        lines.append(
            f"workload: {work.num_tokens} greedy tokens after a prompt, prompt included in the "
            f"time, batch 1, at most {work.max_context} positions; tier {rules.tier}: PPL at most "
            f"+{gate.max_ppl_rise:.1%}"
            + (f", KL at most {gate.max_kl:g}" if math.isfinite(gate.max_kl) else "")
            + (f", top-1 at least {gate.min_top1:.0%}" if gate.min_top1 else "")
            + ", each at its 95 % bound"
        )
    return "\n".join(lines)


def _champion(briefing: Briefing) -> str:
    read = briefing.catalogue.read_bytes(briefing.shape, briefing.champion_settings)
    ceiling = briefing.bandwidth_gbps * 1e9 / read
    return (
        f"{briefing.champion}: {briefing.champion_tps:.1f} tokens/s with "
        f"{_pulled(briefing.champion_settings, briefing.catalogue)}; reads "
        f"{read / 1e6:.0f} MB a token by its levers, "
        f"so at {briefing.bandwidth_gbps:.1f} GB/s the roofline is {ceiling:.0f} tokens/s"
    )


def _profile(briefing: Briefing) -> str:
    found = briefing.profile()
    if found is None:
        return ""
    rows = [
        f"{_plain_name(row.name)}: {1e6 * row.time_s:.0f} µs ({row.share:.0%}), reads "
        f"{row.read_bytes / 1e6:.1f} MB"
        + (f", {row.roofline:.0%} of the roofline" if row.roofline else "")
        for row in found.components
    ]
    whole = f"a token: {1e3 * found.token_s:.2f} ms; first token {found.first_token_s:.3f} s"
    if found.acceptance:
        shares = ", ".join(f"{share:.0%}" for share in found.acceptance)
        rows.append(f"drafted tokens that came true, by position: {shares}")
    return "\n".join([*rows, whole])


def _plain_name(name: str) -> str:
    """Return a component's name without what isn't one: engines choose their names."""
    return re.sub(r"[^A-Za-z0-9 ._+-]", "", name)[:40]


def _levers(briefing: Briefing) -> str:
    return "\n".join(
        f"{lever.name}: {', '.join(lever.values)} (now {briefing.champion_settings[lever.name]}): "
        f"{lever.summary}; risk: {lever.risk}"
        for lever in briefing.catalogue.levers.values()
    )


def _standings(briefing: Briefing) -> str:
    rows = [
        f"{s.variant} {s.verdict} {s.cause}, "
        + (f"{s.speedup:.2f}x {s.baseline}" if s.speedup else "never ran")
        + f": {_pulled(s.settings, briefing.catalogue)}"
        for s in briefing.standings[:_TOP]
    ]
    return quote("\n".join(rows), "the leaderboard", 3000) if rows else ""


def _trials(briefing: Briefing) -> str:
    rows = [
        f"{_change(trial.changed) or 'source only'}: {trial.verdict}, {trial.cause}"
        + (f", {math.exp(trial.speed):.2f}x the baseline" if trial.speed is not None else "")
        for trial in briefing.trials[-_LATEST:]
    ]
    return quote("\n".join(rows), "memory's experiments", 3000) if rows else ""


def _ledger(briefing: Briefing) -> str:
    rows = []
    for entry in briefing.ledger[:_LATEST]:
        effect = f" ({math.expm1(entry.best.mean):+.1%})" if entry.best else ""
        rows.append(f"{entry.lever}={entry.value}: {entry.status}{effect}; {entry.mechanism[:160]}")
    return quote("\n".join(rows), "the lever ledger", 4000) if rows else ""


def _claimed(briefing: Briefing) -> str:
    return "\n".join(_pulled(settings, briefing.catalogue) for settings in briefing.claimed)


def _calibration(briefing: Briefing) -> str:
    rows = [
        f"{found.agent}, {found.lever}: predicted {_average(found.predicted, found.count)}, "
        f"measured {_average(found.measured, found.count)} on average of {found.count}"
        for found in briefing.calibration[:_LATEST]
        if found.count
    ]
    return quote("\n".join(rows), "predictions on record", 2000) if rows else ""


def _average(total: float, count: int) -> str:
    return f"{math.expm1(total / count):+.1%}"


def _refused(briefing: Briefing) -> str:
    return "\n".join(quote(text, "memory") for text in briefing.refused)


def _posts(briefing: Briefing) -> str:
    return "\n".join(quote(post.text, post.source, 400) for post in briefing.posts)


def _left(briefing: Briefing) -> str:
    left = briefing.left
    minutes = f"{left.minutes:.0f} minutes, " if math.isfinite(left.minutes) else ""
    usd = f", ${left.usd:.2f}" if left.usd is not None else ""
    return f"{minutes}{left.experiments} experiments{usd}"


def _pulled(settings: dict[str, str], catalogue: Catalogue) -> str:
    changed = {name: v for name, v in settings.items() if catalogue.seed.get(name) != v}
    return _change(changed) or "no lever"


def _change(changed: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(changed.items()))


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def brief_coder(hypothesis: Hypothesis, bench: Workbench) -> str:
    """Return what a coder is told: the facts by code, the hypothesis as a planner's words."""
    idea = "\n".join(
        f"{name}: {text}"
        for name, text in (
            ("target", hypothesis.target or hypothesis.lever),
            ("mechanism", hypothesis.mechanism),
            ("risk", hypothesis.risk),
            ("would be refuted by", hypothesis.falsifier),
            ("expected gain", f"{hypothesis.predicted_gain:+.1%}"),
        )
        if text
    )
    return (
        f"{bench.facts}\n\nThe hypothesis, {hypothesis.id}, on variant {hypothesis.parent}; its "
        f"levers are set already:\n{quote(idea, hypothesis.agent, 4000)}\n\nWrite the variant."
    )
