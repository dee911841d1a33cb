"""Commands that ask memory, talk on the board, and keep both in order."""

import getpass
import json
import math
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from slipstream.evaluation.errors import SlipstreamError

from .display import out, print_json, say_plainly, show_rows
from .options import AsJson, MemoryUrl, Since

if TYPE_CHECKING:
    from slipstream.kernels.variants import VariantStore
    from slipstream.memory.board import Post
    from slipstream.memory.logs import LogStore
    from slipstream.memory.search import Hit
    from slipstream.memory.store import Memory

app = typer.Typer()
memory_app = typer.Typer(no_args_is_help=True, help="Export, import, merge, check, prune.")
app.add_typer(memory_app, name="memory")

_UNITS_S = {"m": 60.0, "h": 3600.0, "d": 86400.0}
Limit = Annotated[int, typer.Option(min=1, help="At most this many.")]


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

    with _open(memory) as store:
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
                "last seen": _when(entry.last_seen),
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

    with _open(memory) as store:
        hits = search(
            store.database,
            " ".join(words or ()),
            lever=lever,
            verdict=verdict,
            family=family,
            challenge=challenge,
            since=_seconds(since),
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

    with _open(memory) as store:
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
    with _open(memory) as store:
        rows = [asdict(holding) for holding in store.claims.live()]
    show_rows(rows, as_json, empty="nobody is at work")


@app.command()
def digest(since: Since = "24h", memory: MemoryUrl = None, as_json: AsJson = False) -> None:
    """Show what happened since: verdicts, gains, findings, posts."""
    from slipstream.memory.digest import digest as digest_of

    with _open(memory) as store:
        found = digest_of(store, _seconds(since))
    if as_json:
        print_json(asdict(found))
        return
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found.verdicts.items())
    out.print(f"[bold]experiments[/]: {counts or 'none'}")
    for title, hits in (("gains", found.gains), ("findings", found.findings)):
        out.print(f"[bold]{title}[/]")
        _print_hits(hits, "  none")
    out.print("[bold]posts[/]")
    _print_posts(found.posts)


@app.command()
def board(
    channel: Annotated[str | None, typer.Option(help="Only this topic.")] = None,
    thread: Annotated[str | None, typer.Option(help="A post and what replies to it.")] = None,
    since: Since = "",
    limit: Limit = 20,
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Read the board, the newest post first."""
    from slipstream.memory.board import Board

    with _open(memory) as store:
        wall = Board(store.database, _user())
        posts = (
            wall.thread(thread)
            if thread
            else wall.posts(channel=channel, since=_seconds(since), limit=limit)
        )
    if as_json:
        print_json([asdict(post) for post in posts])
    else:
        _print_posts(posts)


@app.command()
def post(
    text: str,
    channel: Annotated[str, typer.Option(help="A topic.")] = "general",
    reply_to: Annotated[str | None, typer.Option(help="The id of a post.")] = None,
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Say something on the board, in your own name; @name puts it into somebody's inbox."""
    from slipstream.memory.board import Board

    with _open(memory) as store:
        said = Board(store.database, _user()).post(text, channel=channel, reply_to=reply_to)
    if as_json:
        print_json(asdict(said))
    else:
        out.print(f"{said.id} by {said.author} in {said.channel}")


@app.command()
def inbox(
    since: Since = "", limit: Limit = 20, memory: MemoryUrl = None, as_json: AsJson = False
) -> None:
    """Read what mentions you or replies to you."""
    from slipstream.memory.board import Board

    with _open(memory) as store:
        posts = Board(store.database, _user()).inbox(since=_seconds(since), limit=limit)
    if as_json:
        print_json([asdict(post) for post in posts])
    else:
        _print_posts(posts)


@memory_app.command("export")
def export(
    file: Annotated[Path, typer.Argument(help="JSON lines; - for standard output.")],
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Write everything that is recorded, trees and logs included."""
    from slipstream.memory.exchange import export_memory

    with _open(memory) as store:
        variants, logs = _beside()
        if str(file) == "-":
            export_memory(store, variants, logs, sys.stdout)
            return
        partial = file.with_name(f".{file.name}.new")
        with partial.open("w") as stream:
            count = export_memory(store, variants, logs, stream)
        partial.rename(file)
    if as_json:
        print_json({"file": str(file), "rows": count})
    else:
        out.print(f"{count} rows in {file}")


@memory_app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="What `memory export` wrote; - for standard input.")],
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Add what an export holds; what is known already stays as it is."""
    from slipstream.memory.exchange import import_memory

    with _open(memory) as store, sys.stdin if str(file) == "-" else file.open() as stream:
        say = (lambda _: None) if as_json else say_plainly
        joined = import_memory(store, *_beside(), stream, say)
    _print_joined(asdict(joined), as_json)


@memory_app.command()
def merge(
    other: Annotated[str, typer.Argument(help="URL of another memory; it is only read.")],
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Add what another memory knows."""
    from slipstream.memory.exchange import import_memory, lines
    from slipstream.memory.store import open_memory

    with _open(memory) as store, open_memory(other) as theirs:
        say = (lambda _: None) if as_json else say_plainly
        joined = import_memory(store, *_beside(), lines(theirs, *_beside()), say)
    _print_joined(asdict(joined), as_json)


@memory_app.command()
def check(
    repair: Annotated[
        bool, typer.Option("--repair", help="Make all that is derived anew, first.")
    ] = False,
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Verify every hash and reference, and that what is derived is what experiments say."""
    from slipstream.evaluation.home import data_dir
    from slipstream.memory import upkeep

    with _open(memory) as store:
        if repair:
            upkeep.repair(store)
        faults = upkeep.check(store, *_beside(), data_dir() / "runs")
    show_rows([asdict(fault) for fault in faults], as_json, empty="all is well")
    sys.exit(1 if faults else 0)


@memory_app.command()
def prune(
    keep: Annotated[str, typer.Option(help="all, kept or champions; ancestors too.")] = "all",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Remove trees and logs that nothing points to; what was learned stays."""
    from slipstream.memory import upkeep

    if keep not in set(upkeep.Keep):
        raise SlipstreamError(f"--keep {keep}: one of {', '.join(upkeep.Keep)}")
    with _open(memory) as store:
        gone = upkeep.prune(store, *_beside(), upkeep.Keep(keep), dry_run=dry_run)
    if as_json:
        print_json(asdict(gone))
        return
    out.print(
        f"{len(gone.trees)} trees, {len(gone.logs)} logs, {len(gone.leftovers)} leftovers "
        f"{'would be ' if dry_run else ''}removed: {gone.freed_bytes / 1e6:.1f} MB"
    )


@contextmanager
def _open(url: str | None) -> "Iterator[Memory]":
    from slipstream.memory.store import open_memory

    with open_memory(url) as store:
        yield store


def _beside() -> "tuple[VariantStore, LogStore]":
    """Return what lies beside the database."""
    from slipstream.evaluation.home import data_dir
    from slipstream.kernels.variants import VariantStore
    from slipstream.memory.logs import LogStore

    return VariantStore(data_dir() / "variants"), LogStore(data_dir() / "logs")


def _user() -> str:
    """Return the name that posts from this command line are stamped with: the system's."""
    return re.sub(r"[^A-Za-z0-9._:-]", "-", getpass.getuser()).lstrip("._:-")[:64] or "somebody"


def _seconds(since: str) -> float:
    """Return a time as seconds since the epoch: some time ago, or a date."""
    if not since:
        return 0.0
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", since):
        return time.time() - float(ago[1]) * _UNITS_S[ago[2]]
    try:
        at = datetime.fromisoformat(since)
    except ValueError as error:
        raise SlipstreamError(
            f"--since {since!r}: write 30m, 12h, 7d, or a date like 2026-11-22"
        ) from error
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


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


def _print_posts(posts: "list[Post]") -> None:
    if not posts:
        out.print("nothing there")
    for one in posts:
        answer = f" ↩ {one.reply_to}" if one.reply_to else ""
        out.print(
            f"[bold]{escape(one.author)}[/] {one.id} {one.channel}{answer} {_when(one.posted_at)}"
        )
        out.print(escape(one.text), highlight=False)


def _print_joined(joined: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(joined, indent=2))
        return
    rows = ", ".join(f"{count} {table}" for table, count in joined["rows"].items())
    out.print(
        f"{joined['seen']} rows read; new: {rows or 'none'}, {joined['trees']} trees, "
        f"{joined['logs']} logs"
    )
