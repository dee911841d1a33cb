"""Commands that tell a run something while it goes on, and what it has cost so far."""

import getpass
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from slipstream.evaluation.errors import SlipstreamError

from .common import opened
from .display import out, print_json, show_rows
from .options import AsJson, MemoryUrl

if TYPE_CHECKING:
    from slipstream.memory.costs import Bill

app = typer.Typer()

_SHOWN_LINES = 80


@app.command()
def steer(run: str, text: str, memory: MemoryUrl = None, as_json: AsJson = False) -> None:
    """Tell a run's planner something; it reads it before the next plan, like its program.md."""
    from slipstream.memory.steering import steer as tell

    with opened(memory) as store:
        said = tell(store, run, getpass.getuser(), text)
    if as_json:
        print_json({"run": run, **asdict(said)})
    else:
        out.print(f"told {escape(run)}; its planner reads it before the next plan")


@app.command()
def approve(
    experiment: str,
    refuse: Annotated[bool, typer.Option("--refuse", help="Say no.")] = False,
    text: Annotated[str, typer.Option("--text", help="Why; goes on record.")] = "",
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Answer a run that was started with --approve, and waits with a change."""
    from slipstream.memory.steering import answer

    with opened(memory) as store:
        said = answer(store, experiment, getpass.getuser(), approved=not refuse, text=text)
    if as_json:
        print_json(asdict(said))
    else:
        out.print(f"{escape(experiment)}: {'refused' if refuse else 'approved'}")


@app.command()
def costs(run: str, memory: MemoryUrl = None, as_json: AsJson = False) -> None:
    """Show what a run has cost: tokens, dollars, time; by role, experiment and kept gain."""
    from slipstream.memory.costs import Costs, bill

    with opened(memory) as store:
        found = bill(store, run)
        calls = Costs(store.database).of_run(run) if as_json else []
    if as_json:
        print_json({**asdict(found), "calls": [asdict(call) for call in calls]})
        return
    for title, rows in (
        ("by role", found.by_role),
        ("by model", found.by_model),
        ("by experiment", found.by_experiment),
    ):
        out.print(f"[bold]{title}[/]")
        show_rows([_row(one) for one in rows], as_json=False, empty="  nothing")
    out.print(_summary(found))


def _row(one: Any) -> dict[str, Any]:
    row = asdict(one)
    row["name"] = row["name"] or "planning, setting up"
    row["usd"] = f"{row['usd']:.4f}" + (" + ?" if row.pop("unpriced") else "")
    return row | {name: round(row[name], 1) for name in ("wall_s", "gpu_s")}


def _summary(found: "Bill") -> str:
    total, budget = found.total, found.budget_usd
    limit = f" of ${budget:.2f}" if budget is not None else ""
    text = f"${total.usd:.4f}{limit} for {total.calls} calls"
    if total.unpriced:
        text += f", {total.unpriced} of them without a known price"
    if found.usd_per_kept is None or found.minutes_per_kept is None:
        return f"{text}; nothing kept so far"
    each = f"${found.usd_per_kept:.4f} and {found.minutes_per_kept:.1f} minutes each"
    return f"{text}; {found.kept} kept at {each}, {found.log_gain:.3f} nats of speed-up"


def ask_terminal(question: dict[str, str]) -> tuple[bool, str] | None:
    """Ask whoever sits at the terminal about a change, for a second; None if they say nothing."""
    import select

    if question["hypothesis"] not in _asked:
        _asked.add(question["hypothesis"])
        lines = question["diff"].splitlines()
        out.print(escape("\n".join(lines[:_SHOWN_LINES])), highlight=False)
        if len(lines) > _SHOWN_LINES:
            out.print(f"… {len(lines) - _SHOWN_LINES} more lines")
        out.print("measure it? [bold]y[/], or [bold]n[/] and why:")
    ready, _, _ = select.select([sys.stdin], [], [], 1.0)
    if not ready:
        return None
    line = sys.stdin.readline()
    if not line:  # the terminal is gone: wait for `slipstream approve`
        time.sleep(1.0)
        return None
    said = line.strip()
    word, _, why = said.partition(" ")
    if word.lower() in ("y", "yes", "n", "no"):
        return word.lower() in ("y", "yes"), why
    out.print("write y, or n and why")
    return None


_asked: set[str] = set()


def read_file(path: Path | None, default: str) -> str:
    """Return a file's text.

    Raises:
        SlipstreamError: it can't be read.
    """
    if path is None:
        return default
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SlipstreamError(f"--program {path}: {error}") from error
