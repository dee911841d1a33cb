"""Commands that keep a memory in order: export, import, merge, check, prune."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slipstream.evaluation.errors import SlipstreamError

from .common import opened
from .display import out, print_json, say_plainly, show_rows
from .options import AsJson, MemoryUrl

if TYPE_CHECKING:
    from slipstream.kernels.variants import VariantStore
    from slipstream.memory.logs import LogStore

app = typer.Typer(no_args_is_help=True, help="Export, import, merge, check, prune.")


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(help="JSON lines; - for standard output.")],
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Write everything that is recorded, trees and logs included."""
    from slipstream.memory.exchange import export_memory

    with opened(memory) as store:
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


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="What `memory export` wrote; - for standard input.")],
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Add what an export holds; what is known already stays as it is."""
    from slipstream.memory.exchange import import_memory

    with opened(memory) as store, sys.stdin if str(file) == "-" else file.open() as stream:
        say = (lambda _: None) if as_json else say_plainly
        joined = import_memory(store, *_beside(), stream, say)
    _print_joined(asdict(joined), as_json)


@app.command()
def merge(
    other: Annotated[str, typer.Argument(help="URL of another memory; it is only read.")],
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Add what another memory knows."""
    from slipstream.memory.exchange import import_memory, lines
    from slipstream.memory.store import open_memory

    with opened(memory) as store, open_memory(other) as theirs:
        say = (lambda _: None) if as_json else say_plainly
        joined = import_memory(store, *_beside(), lines(theirs, *_beside()), say)
    _print_joined(asdict(joined), as_json)


@app.command()
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

    with opened(memory) as store:
        if repair:
            upkeep.repair(store)
        faults = upkeep.check(store, *_beside(), data_dir() / "runs")
    show_rows([asdict(fault) for fault in faults], as_json, empty="all is well")
    sys.exit(1 if faults else 0)


@app.command()
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
    with opened(memory) as store:
        gone = upkeep.prune(store, *_beside(), upkeep.Keep(keep), dry_run=dry_run)
    if as_json:
        print_json(asdict(gone))
        return
    out.print(
        f"{len(gone.trees)} trees, {len(gone.logs)} logs, {len(gone.leftovers)} leftovers "
        f"{'would be ' if dry_run else ''}removed: {gone.freed_bytes / 1e6:.1f} MB"
    )


def _beside() -> "tuple[VariantStore, LogStore]":
    """Return what lies beside the database."""
    from slipstream.evaluation.home import data_dir
    from slipstream.kernels.variants import VariantStore
    from slipstream.memory.logs import LogStore

    return VariantStore(data_dir() / "variants"), LogStore(data_dir() / "logs")


def _print_joined(joined: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(joined, indent=2))
        return
    rows = ", ".join(f"{count} {table}" for table, count in joined["rows"].items())
    out.print(
        f"{joined['seen']} rows read; new: {rows or 'none'}, {joined['trees']} trees, "
        f"{joined['logs']} logs"
    )
