"""Commands that ask memory what is known: levers, findings, predictions, claims, news."""

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import opened, print_posts, seconds, when
from .display import out, print_json, show_rows
from .options import AsJson, Limit, MemoryUrl, Since

if TYPE_CHECKING:
    from slipstream.memory.search import Hit

app = typer.Typer()


@app.command()
def levers(
    lever: Annotated[str | None, typer.Argument(help="Only this one.")] = None,
    family: Annotated[str | None, typer.Option(help="Of models: llama, gemma3_text …")] = None,
    machine: Annotated[str | None, typer.Option(help="A kind of machine, by its id.")] = None,
    limit: Limit = 50,
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show the lever ledger: what is known of each lever, with its evidence."""
    from slipstream.memory.ledger import ledger

    with opened(memory) as store:
        entries = ledger(store.database, family=family, machine=machine, lever=lever, limit=limit)
    if as_json:
        rows = []
        for entry in entries:
            gain = _gain(entry.best.mean if entry.best else None)
            low, high = entry.best.interval() if entry.best else (None, None)
            best = {"best_gain": gain, "best_low": _minus_one(low), "best_high": _minus_one(high)}
            row = {k: v for k, v in asdict(entry).items() if k != "best"}
            rows.append({**row, "status": entry.status, "trials": entry.trials, **best})
        print_json(rows)
        return
    show_rows(
        [
            {
                "lever": entry.lever,
                "value": entry.value,
                "status": entry.status,
                "trials": entry.trials,
                "best effect": _effect(entry.best),
                "evidence": entry.best_experiment or entry.evidence[-1],
                "another try": entry.reopen,
                "last seen": when(entry.last_seen),
                "family": entry.family,
                "machine": entry.machine,
            }
            for entry in entries
        ],
        as_json=False,
        empty="nothing tried yet; `slipstream run` starts",
    )


@app.command()
def findings(
    words: Annotated[list[str] | None, typer.Argument(help="All of these.")] = None,
    lever: Annotated[str | None, typer.Option()] = None,
    verdict: Annotated[str | None, typer.Option(help="kept, rejected, inconclusive …")] = None,
    family: Annotated[str | None, typer.Option(help="Of models.")] = None,
    challenge: Annotated[str | None, typer.Option()] = None,
    since: Since = "",
    limit: Limit = 20,
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Search what was learned, by words and filters."""
    from slipstream.memory.search import search

    with opened(memory) as store:
        hits = search(
            store.database,
            " ".join(words or ()),
            lever=lever,
            verdict=verdict,
            family=family,
            challenge=challenge,
            since=seconds(since),
            limit=limit,
        )
    if as_json:
        print_json([asdict(hit) | {"gain": _gain(hit.gain)} for hit in hits])
    else:
        _print_hits(hits, "nothing found")


@app.command()
def calibration(memory: MemoryUrl = None, as_json: AsJson = False) -> None:
    """Show predicted against measured gain, per agent and lever."""
    from slipstream.memory.ledger import calibration as corrections

    with opened(memory) as store:
        found = corrections(store.database)
    rows = [
        {
            "agent": c.agent,
            "lever": c.lever,
            "trials": c.count,
            "predicted": math.expm1(c.predicted / c.count),
            "measured": math.expm1(c.measured / c.count),
            "off_by": math.expm1(c.error),
            "factor": c.factor,
        }
        for c in found
    ]
    show_rows(rows, as_json, empty="nothing predicted and measured yet")


@app.command()
def claims(memory: MemoryUrl = None, as_json: AsJson = False) -> None:
    """Show what is being worked on now, by whom, and until when unless renewed."""
    with opened(memory) as store:
        rows = [asdict(holding) for holding in store.claims.live()]
    show_rows(rows, as_json, empty="nobody is at work")


@app.command()
def digest(since: Since = "24h", memory: MemoryUrl = None, as_json: AsJson = False) -> None:
    """Show what happened since: verdicts, gains, findings, posts."""
    from slipstream.memory.digest import digest as digest_of

    with opened(memory) as store:
        found = digest_of(store, seconds(since))
    if as_json:
        print_json(asdict(found))
        return
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found.verdicts.items())
    out.print(f"[bold]experiments[/]: {counts or 'none'}")
    for title, hits in (("gains", found.gains), ("findings", found.findings)):
        out.print(f"[bold]{title}[/]")
        _print_hits(hits, "  none")
    out.print("[bold]posts[/]")
    print_posts(found.posts)


def _gain(log_ratio: float | None) -> float | None:
    return None if log_ratio is None else math.expm1(log_ratio)


def _minus_one(ratio: float | None) -> float | None:
    return None if ratio is None or not math.isfinite(ratio) else ratio - 1


def _effect(best: Any) -> str:
    if best is None:
        return ""
    low, high = best.interval()
    return f"{best.ratio - 1:+.1%} ({low - 1:+.1%} to {high - 1:+.1%})"


def _print_hits(hits: "list[Hit]", empty: str) -> None:
    rows = [
        {
            "experiment": hit.experiment,
            "lever": hit.lever,
            "value": hit.value,
            "verdict": hit.verdict,
            "gain": "" if hit.gain is None else f"{math.expm1(hit.gain):+.1%}",
            "mechanism": hit.mechanism,
            "another try": hit.reopen,
        }
        for hit in hits
    ]
    show_rows(rows, as_json=False, empty=empty)
