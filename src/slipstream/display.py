"""How the command line looks: tables, events as they happen, one JSON object for a script."""

import json
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from slipstream.kernels.levers import SEED_SETTINGS

if TYPE_CHECKING:
    from slipstream.collab.rehearsal import Rehearsal
    from slipstream.evaluation.profiling import Profile
    from slipstream.evaluation.projection import Machine
    from slipstream.graph.context import Event
    from slipstream.graph.reproducing import Verification
    from slipstream.memory.leaderboard import Pulse, Standing

out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 140)

# What a progress line left behind, on a terminal.
_ERASE_REST = " " * 20 if out.is_terminal else ""
_AGENT_COLOURS = {"planner": "cyan", "coder": "magenta", "judge": "yellow", "reflect": "blue"}
_VERDICT_COLOURS = {"kept": "green", "rejected": "red"}


def print_json(value: Any) -> None:
    """Print a value for a script."""
    print(json.dumps(value, indent=2, default=str), flush=True)


def show_rows(rows: list[dict[str, Any]], as_json: bool, *, empty: str = "") -> None:
    """Print rows as a table, or as JSON."""
    if as_json:
        print_json(rows)
        return
    if not rows:
        out.print(empty)
        return
    table = Table(box=None)
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row.values()))
    out.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def standings_table(standings: "list[Standing]") -> Table:
    """Return the leaderboard as a table."""
    table = Table(title="leaderboard", title_justify="left", box=None)
    for column in ("variant", "verdict", "tokens/s", "speed-up", "95 % interval", "PPL", "novelty"):
        table.add_column(column, no_wrap=True)
    table.add_column("levers", overflow="fold")
    for s in standings:
        colour = _VERDICT_COLOURS.get(s.verdict, "yellow")
        table.add_row(
            s.variant,
            f"[{colour}]{s.verdict}[/] {'' if s.cause == 'gain' else s.cause}",
            f"{s.tps:.1f}" if s.tps else "",
            f"{s.speedup:.2f}×" if s.speedup else "",
            f"{s.speedup_low:.2f}–{s.speedup_high:.2f}" if s.speedup_high else "",
            f"{s.ppl_rise:+.2%}" if s.ppl_rise is not None else "",
            f"{s.novelty:.2f}",
            escape(_levers(s)),
        )
    return table


def print_pulse(pulse: "Pulse") -> None:
    """Print whether the search is still alive: stagnation, lineages, monoculture."""
    lines = ", ".join(
        f"{line.root} ({line.trials} tried{f', best {line.speedup:.2f}×' if line.speedup else ''})"
        for line in pulse.lineages[:5]
    )
    out.print(f"{pulse.stagnation} variants since the latest gain; lineages: {lines}")
    if pulse.monoculture:
        out.print(f"[yellow]monoculture[/]: the top ten all descend from {pulse.monoculture}")


def _levers(standing: "Standing") -> str:
    pulled = [f"{k}={v}" for k, v in standing.settings.items() if SEED_SETTINGS.get(k) != v]
    return " ".join(pulled) or "none (the seed engine)"


def print_summary(summary: dict[str, Any]) -> None:
    """Print what came out of a run."""
    champion = summary["champion"]
    if champion and champion["speedup"]:
        high = champion["speedup_high"]
        out.print(
            f"champion [bold]{champion['variant']}[/]: [bold green]{champion['speedup']:.2f}×[/] "
            f"{champion['baseline']} (95 % interval {champion['speedup_low']:.2f} to "
            f"{f'{high:.2f}' if high else '∞'}), tier {champion['tier']}"
        )
    out.print(
        f"run {summary['run']}: {summary['stop']}; {summary['experiments']} experiments, "
        f"{summary['kept']} kept, {summary['minutes']:.1f} minutes"
    )
    out.print(f"report: {summary['report']}")
    if summary["stop"] == "interrupted":
        out.print(f"go on with: [bold]slipstream resume {summary['run']}[/]")


def print_rehearsal(found: "Rehearsal") -> None:
    """Print what a run would submit, and what that may cost."""
    out.print(
        f"{found.challenge} on {found.flavor} ({found.gpu or 'no GPU'}, reads {found.gbps:g} GB/s):"
        f" {found.jobs} jobs, at most ${found.usd_per_job:.2f} each (${found.usd:.2f}) and "
        f"{found.hours:.1f} hours, if none has to be repeated; {found.per_day} jobs a day"
    )
    low, high = found.minutes_per_job
    out.print(
        f"a whole experiment times for {low:.0f} to {high:.0f} minutes (projected: at the ceiling "
        f"without levers, and at a quarter of it); a job is stopped after "
        f"{found.timeout_minutes:g}"
    )
    show_rows(found.levers, as_json=False)
    out.print("each job, with the names of a run's first:")
    out.print_json(data=found.job)


def verification_row(found: "Verification") -> dict[str, Any]:
    """Return a verification as stable fields for a script."""
    low, high = found.speedup.interval()
    quality, audits = found.quality, found.audits
    return {
        "variant": found.variant,
        "outcome": str(found.outcome),
        "reason": found.reason,
        "tps": found.tps,
        "speedup": found.speedup.ratio,
        "speedup_low": low,
        "speedup_high": high,
        "claimed": found.claimed.ratio if found.claimed else None,
        "within_5_percent": found.within_5_percent,
        "ppl_rise": quality.ppl_rise if quality else None,
        "kl": quality.kl if quality else None,
        "top1": quality.top1 if quality else None,
        "regret": audits.regret if audits else None,
        "match_rate": audits.match_rate if audits else None,
        "contradictions": audits.contradictions if audits else None,
    }


def print_verification(found: "Verification") -> None:
    """Print a verification for people."""
    colour = {"valid": "green", "invalid": "red"}.get(found.outcome, "yellow")
    out.print(f"[bold {colour}]{found.outcome.upper()}[/] {found.variant}: {escape(found.reason)}")
    if found.within_5_percent is not None:
        word = "within" if found.within_5_percent else "outside"
        out.print(f"the Gemma challenge's rule: {word} 5 % of the speed on record")
    if found.quality and found.audits:
        out.print(
            f"held-out documents: PPL {found.quality.ppl_rise:+.2%}, KL {found.quality.kl:.4f}, "
            f"top-1 {found.quality.top1:.1%}; timed tokens: {found.audits.match_rate:.1%} the "
            f"reference's, regret {found.audits.regret:.4f} nats, {found.audits.contradictions} of "
            f"{found.audits.num_tokens} contradict the engine's own scores"
        )


def print_event(event: "Event") -> None:
    """Print what an agent did; progress overwrites itself on a terminal."""
    style = _AGENT_COLOURS.get(event.agent, "dim")
    line = f"[{style}]{event.agent:>11}[/] {escape(event.text)}"
    if not event.fleeting:
        out.print(f"{line}{_ERASE_REST}", highlight=False)
    elif out.is_terminal:  # progress overwrites itself
        out.print(f"{line}{_ERASE_REST}", highlight=False, end="\r")


def print_event_json(event: "Event") -> None:
    """Print what an agent did as one line of JSON."""
    row = {"agent": event.agent, "text": event.text, "fleeting": event.fleeting}
    print(json.dumps(row), flush=True)


def print_profile(found: "Profile") -> None:
    """Print a decoded token's components, the dearest first."""
    table = Table(box=None)
    for column in ("component", "reads", "takes", "share", "of the roofline"):
        table.add_column(column, justify="left" if column == "component" else "right")
    for row in found.components:
        table.add_row(
            escape(row.name),
            f"{row.read_bytes / 1e6:.1f} MB" if row.read_bytes else "",
            f"{1e6 * row.time_s:.0f} µs",
            f"{row.share:.0%}",
            f"{row.roofline:.0%}" if row.roofline else "",
        )
    out.print(table)
    out.print(
        f"a token: {1e3 * found.token_s:.2f} ms ({1 / found.token_s:.1f} tokens/s), reads "
        f"{found.read_bytes / 1e6:.0f} MB at {found.bandwidth_gbps:.1f} GB/s: "
        f"{found.roofline:.0%} of the roofline; first token after {found.first_token_s:.3f} s"
    )
    if found.acceptance:
        shares = ", ".join(f"{share:.0%}" for share in found.acceptance)
        out.print(f"drafted tokens that came true, by position: {shares}")


def print_projection(tps: float, there: "Machine") -> None:
    """Print what a variant would do elsewhere, and that nobody has measured it."""
    out.print(
        f"on {escape(there.name)} ({there.gbps:.0f} GB/s): {tps:.1f} tokens/s, "
        "a projection: bytes at that memory's speed, all else as here"
    )


def print_machine(found: "Machine") -> None:
    """Print a machine's profile."""
    out.print(f"{escape(found.name)}: reads {found.gbps:.1f} GB/s")
    if found.capability:
        out.print(
            f"sm_{found.capability * 10:.0f}, {found.shared_kb:.0f} KB shared memory a block, "
            f"{found.launch_us:.2f} µs a launch in a CUDA graph; {', '.join(found.features)}"
        )


def say_plainly(text: str) -> None:
    """Print progress to stderr, so that stdout stays for results."""
    Console(stderr=True, soft_wrap=True).print(escape(text), style="dim", highlight=False)
