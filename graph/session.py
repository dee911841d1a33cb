"""Starts a run or resumes one: opens its context, drives the graph, leaves things tidy."""

import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import langsmith
from langchain_core.runnables import RunnableConfig
from langgraph.types import Command

from slipstream.agents.specs import AgentSpecs
from slipstream.collab.places import hardware_of
from slipstream.evaluation.bench import Bench
from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.errors import SlipstreamError, StopRequested
from slipstream.evaluation.home import data_dir, make_dir
from slipstream.evaluation.manifest import make_environment, parse_manifest
from slipstream.kernels.seeds import read_seed, seed_server, server_names
from slipstream.kernels.variants import MANIFEST, VariantStore
from slipstream.memory.cassette import Cassette
from slipstream.memory.leaderboard import Standing, leaderboard
from slipstream.memory.records import Run, RunState
from slipstream.memory.store import Memory

from .approval import Ask, wait_for_answers
from .build import build_graph
from .checkpoints import open_checkpoints
from .context import LoopContext
from .directions import TEMPLATE
from .liveness import run_dir
from .opening import PROGRAM, Agents, Emit, open_context

_INTERRUPTED = "interrupted"


def _nobody(question: dict[str, str]) -> tuple[bool, str] | None:  # noqa: ARG001
    """Nobody watches: wait for `slipstream approve`."""
    time.sleep(0.5)
    return None


@dataclass(frozen=True)
class Outcome:
    """How a session of a run ended."""

    run: Run
    stop: str
    champion: Standing | None
    standings: list[Standing]


def new_run(
    challenge: Challenge,
    memory: Memory,
    *,
    minutes: float | None = None,
    experiments: int | None = None,
    seed: int | None = None,
    unsafe_local: bool = False,
    agents: AgentSpecs | None = None,
    usd: float | None = None,
    program: str = TEMPLATE,
    seed_engine: str = "",
    parallel: int = 0,
    executor: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> Run:
    """Write a new run into memory and return it; `resume` then drives it.

    Args:
        agents: who thinks; by default those that need no key.
        usd: dollars that their models may cost; None for no limit.
        program: the first text of the run's program.md.
        seed_engine: where it starts: a served engine that ships, or a folder with one; by default
            what the challenge says.
        parallel: experiments in flight at most; 0 for as many as there are places to measure.
        executor: where those are, as `parse_executor` reads it; by default what the challenge says.

    Raises:
        SlipstreamError: no GPU where one is needed, no such model, no key for it; an executor that
            can't be reached; a folder that is no served engine, or whose dependencies pip can't
            install.
    """
    specs = agents or AgentSpecs()
    specs.check()
    asked = executor or challenge.executor
    hardware = hardware_of(asked, challenge)
    if challenge.device == "cuda" and not hardware.gpus:
        raise SlipstreamError(
            f"challenge {challenge.name}: needs a GPU ({challenge.gpu or 'any CUDA device'}), and "
            "nvidia-smi finds none here; smollm2-cpu runs on any machine, and --executor ray or "
            "hf-jobs measures elsewhere"
        )
    if seed_engine:
        engine = _adopted(seed_engine, say)
        challenge = challenge.model_copy(update={"engine": engine})
    run = Run(
        id=f"r{secrets.token_hex(3)}",
        challenge=challenge.name,
        rules=challenge.model_dump(mode="json"),
        machine=hardware.id,
        machine_label=hardware.label,
        seed=secrets.randbelow(2**31) if seed is None else seed,
        state=RunState.RUNNING,
        budget_minutes=minutes or challenge.budget.minutes,
        budget_experiments=experiments or challenge.budget.experiments,
        spent_s=0.0,
        unsafe=unsafe_local,
        delta=None,
        bandwidth_gbps=None,
        started_at=time.time(),
        agents=asdict(specs) if specs != AgentSpecs() else {},
        budget_usd=usd,
        parallel=parallel,
        executor=asked,
    )
    memory.add_run(run)
    if specs.think:
        (make_dir(run_dir(run.id)) / PROGRAM).write_text(program)
    return run


def _adopted(seed_engine: str, say: Callable[[str], None]) -> str:
    """Return the name of a served engine; a folder's is stored, and gets what it depends on."""
    if seed_engine in server_names():
        tree, name = seed_server(seed_engine), seed_engine
    else:
        try:
            tree = read_seed(Path(seed_engine).expanduser())
        except (OSError, ValueError) as error:
            raise SlipstreamError(
                f"seed engine {seed_engine!r}: {error}; these ship: {', '.join(server_names())}"
            ) from error
        VariantStore(make_dir(data_dir() / "variants")).add(tree)
        name = tree.id
    manifest = parse_manifest(tree.files[MANIFEST], f"seed engine {seed_engine}")
    if manifest.dependencies:
        make_environment(manifest, say)
    return name


def resume(
    run_id: str,
    memory: Memory,
    *,
    emit: Emit = lambda _: None,
    agents: Agents | None = None,
    bench: Bench | None = None,
    tape: Cassette | None = None,
    ask: Ask | None = None,
) -> Outcome:
    """Drive a run from where it stands to its end, or until Ctrl-C.

    Arguments and errors are those of `open_context`.

    Args:
        ask: asks a person who watches, for at most a second: whether a change is approved, and
            what they say to it; None while there is no answer. `slipstream approve` answers too.
    """
    run = memory.run(run_id)
    if run.state is RunState.FINISHED:
        return _outcome(run, memory, "it was finished before")
    stop = _INTERRUPTED
    opened = open_context(run_id, memory, emit=emit, agents=agents, bench=bench, tape=tape)
    with opened as context:
        memory.update_run(run_id, state=RunState.RUNNING)
        try:
            stop = _drive(context, run_dir(run_id) / "checkpoints.db", ask or _nobody)
        except (StopRequested, KeyboardInterrupt):
            stop = _INTERRUPTED
        finally:
            if stop == _INTERRUPTED:  # errors pass through here too
                memory.update_run(
                    run_id, state=RunState.INTERRUPTED, spent_s=context.budget.spent_s
                )
    return _outcome(memory.run(run_id), memory, stop)


def _drive(context: LoopContext, checkpoints: Path, ask: Ask) -> str:
    """Run the graph from its latest checkpoint to its end; return why it ended."""
    saver = open_checkpoints(checkpoints)
    try:
        app = build_graph().compile(checkpointer=saver)
        config: RunnableConfig = {
            "configurable": {"thread_id": context.run},
            "recursion_limit": 1_000_000,  # the budget ends the loop, not LangGraph
            "max_concurrency": max(4, context.parallel),
        }
        snapshot = app.get_state(config)
        start: Any = None if snapshot.tasks else {"run": context.run}
        if not snapshot.values.get("done"):
            # Nothing of a run leaves the machine, whatever tracing variables are set.
            with langsmith.tracing_context(enabled=False):
                while True:
                    for _ in app.stream(start, config, context=context, durability="sync"):
                        context.check_stop()
                    questions = app.get_state(config).interrupts
                    if not questions:
                        break
                    start = Command(resume=wait_for_answers(questions[0].value, context, ask))
        final = app.get_state(config).values
        if not final.get("done"):
            raise RuntimeError(f"run {context.run} ended without its last node")
        return str(final.get("stop", ""))
    finally:
        saver.conn.close()


def _outcome(run: Run, memory: Memory, stop: str) -> Outcome:
    standings = leaderboard(memory, run.challenge, run.machine)
    kept = next((s for s in standings if s.verdict == "kept"), None)
    return Outcome(run, stop, kept, standings)
