"""An exported variant's README: how fast it is, how that is known, where it comes from."""

from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.hardware import detect_hardware
from slipstream.memory.leaderboard import Standing, leaderboard
from slipstream.memory.records import Variant
from slipstream.memory.store import Memory

_LONGEST = 400  # characters of an agent's words
_HOW = """
## Start it

`manifest.json` says how: install `dependencies` into a fresh environment, then, in this folder,

    MODEL_ID={model} SERVED_MODEL_NAME={name} HOST=127.0.0.1 PORT={port} {serve}

It speaks OpenAI's `/v1/completions` and `/v1/chat/completions`, text only, one request at a time.
`sha256sum -c SHA256SUMS` says whether all files are as they were written.
"""


def tell(
    memory: Memory,
    variant: str,
    settings: dict[str, str],
    rules: Challenge,
    manifest: dict[str, object],
) -> str:
    """Return the README of a variant, which memory may not know."""
    known = {one.id: one for one in memory.variants()}
    run = memory.find_run(known[variant].run) if variant in known else None
    machine = run.machine if run is not None else detect_hardware().id
    rows = leaderboard(memory, rules.name, machine)
    standing = next((row for row in rows if row.variant == variant), None)
    pulled = " ".join(f"`{name}={value}`" for name, value in sorted(settings.items()))
    serve = manifest["serve"]
    assert isinstance(serve, list)
    how = _HOW.format(
        model=manifest["model_id"], name=manifest["served_model_name"], port=manifest["port"],
        serve=" ".join(serve),
    )  # fmt: skip
    return "\n".join(
        [
            f"# {manifest['name']}",
            "",
            f"An inference engine for {rules.title}, found by slipstream.",
            "",
            f"Levers: {pulled}",
            "",
            "## How fast",
            "",
            _figures(standing, rules, machine),
            "",
            "## Where it comes from",
            "",
            *_lineage(memory, known, variant),
            how,
        ]
    )


def _figures(standing: Standing | None, rules: Challenge, machine: str) -> str:
    if standing is None:
        return f"Never measured on {rules.name} on this kind of machine ({machine})."
    parts = [
        f"On {machine}, on prompts that it had not been chosen by, verdict {standing.verdict}:"
    ]
    if standing.tps is not None:
        parts.append(f"{standing.tps:.1f} tokens/s, prefill included;")
    if standing.speedup is not None:
        how = "measured directly" if standing.direct else "chained over its ancestors' gains"
        parts.append(
            f"{standing.speedup:.2f}× {standing.baseline} (95 % interval "
            f"{standing.speedup_low:.2f} to {standing.speedup_high:.2f}, {how});"
        )
    if standing.ppl_rise is not None:
        parts.append(f"perplexity {standing.ppl_rise:+.2%} over the fp32 reference")
    parts.append(f"(tier {rules.tier}).")
    return " ".join(parts)


def _lineage(memory: Memory, known: dict[str, Variant], variant: str) -> list[str]:
    """Return a line for each ancestor, newest first, with the hypothesis that led to it."""
    lines: list[str] = []
    now: Variant | None = known.get(variant)
    while now is not None:
        led = next(
            (one for one in memory.experiments(variant=now.id) if one.hypothesis is not None), None
        )
        why = ""
        if led is not None and led.hypothesis is not None:
            idea = memory.hypothesis(led.hypothesis)
            gain = "" if led.gain is None else f", {led.gain:.2f}× its rival"
            why = f": {_code(idea.target)}, because {_code(idea.mechanism)}{gain}"
        lines.append(f"- `{now.id}`{why}")
        now = known.get(now.parent) if now.parent is not None else None
    return lines or ["Its source and levers were put together by hand: no run made it."]


def _code(text: str) -> str:
    """Return an agent's words as one line that no Markdown reader takes for anything else."""
    return "`" + " ".join(text.replace("`", "'").split())[:_LONGEST] + "`"
