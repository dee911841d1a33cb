"""Starts a run or resumes one: puts the context together, drives the graph, leaves things tidy."""

import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import langsmith
from filelock import Timeout
from langchain_core.runnables import RunnableConfig

from slipstream.agents.offline_benchmarker import OfflineBenchmarker
from slipstream.agents.offline_coder import OfflineCoder
from slipstream.agents.offline_planner import OfflinePlanner
from slipstream.agents.roles import Benchmarker, Coder, Planner
from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.errors import SlipstreamError, StopRequested
from slipstream.evaluation.evaluator import Evaluator, LocalEvaluator
from slipstream.evaluation.hardware import detect_hardware, read_bandwidth_gbps
from slipstream.evaluation.home import data_dir, make_dir
from slipstream.evaluation.models import fetch_model
from slipstream.evaluation.prompts import Split, load_prompts
from slipstream.kernels.census import ModelShape, read_shape
from slipstream.kernels.levers import SEED_SETTINGS, Machine
from slipstream.kernels.variants import VariantStore, seed_tree
from slipstream.kernels.workshop import Workshop
from slipstream.memory.leaderboard import Standing, leaderboard
from slipstream.memory.records import Run, RunState, Variant
from slipstream.memory.store import Memory

from .build import build_graph
from .checkpoints import open_checkpoints
from .context import Budget, Event, LoopContext
from .liveness import lock_of, run_dir
from .state import LoopState

Emit = Callable[[Event], None]
_INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Agents:
    """The backends of the three roles."""

    planner: Planner
    coder: Coder
    benchmarker: Benchmarker


@dataclass(frozen=True)
class Outcome:
    """How a session of a run ended."""

    run: Run
    stop: str
    champion: Standing | None
    standings: list[Standing]


@dataclass(frozen=True)
class _Bench:
    """Where measurements happen, and on what."""

    evaluator: Evaluator
    shape: ModelShape
    num_documents: int  # per split


def offline_agents() -> Agents:
    """Return the backends that need no key."""
    return Agents(OfflinePlanner(), OfflineCoder(), OfflineBenchmarker())


def new_run(
    challenge: Challenge,
    memory: Memory,
    *,
    minutes: float | None = None,
    experiments: int | None = None,
    seed: int | None = None,
    unsafe_local: bool = False,
) -> Run:
    """Write a new run into memory and return it; `resume` then drives it."""
    hardware = detect_hardware()
    if challenge.device == "cuda" and not hardware.gpus:
        raise SlipstreamError(
            f"challenge {challenge.name}: needs a GPU ({challenge.gpu or 'any CUDA device'}), and "
            "nvidia-smi finds none here; smollm2-cpu runs on any machine"
        )
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
    )
    memory.add_run(run)
    return run


@contextmanager
def open_context(
    run_id: str,
    memory: Memory,
    *,
    emit: Emit = lambda _: None,
    agents: Agents | None = None,
    evaluator: Evaluator | None = None,
    shape: ModelShape | None = None,
) -> Iterator[LoopContext]:
    """Make a run's context ready: model, prompts, evaluator, workshop, budget, lock.

    What `resume` drives its graph with, and what the agents' nodes need in somebody else's graph.

    Args:
        agents: backends of the roles; offline ones by default.
        evaluator: where to measure; this machine by default (then `shape` is read from the model).

    Raises:
        SlipstreamError: unknown run, a run of another machine, or one that is being worked on.
    """
    run = memory.run(run_id)
    folder = make_dir(run_dir(run_id))
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_of(run_id).acquire(timeout=0))
        except Timeout as error:
            raise SlipstreamError(f"run {run_id} is being worked on by another process") from error
        hardware = detect_hardware()
        if hardware.id != run.machine:
            raise SlipstreamError(
                f"run {run_id} was started on {run.machine_label}; speeds from this machine "
                "can't go into it: start a new run here"
            )
        challenge = Challenge.model_validate(run.rules)
        variants = VariantStore(make_dir(data_dir() / "variants"))
        seed = seed_tree(SEED_SETTINGS)
        variants.add(seed)
        memory.add_variant(
            Variant(seed.id, None, seed.engine_id, seed.settings, run_id, run.started_at)
        )
        if evaluator is None or shape is None:
            bench = _local_bench(run, challenge, variants, folder, emit)
        else:
            bench = _Bench(evaluator, shape, challenge.quality.documents)
        stack.callback(bench.evaluator.close)
        if run.bandwidth_gbps is None:
            memory.update_run(run_id, bandwidth_gbps=read_bandwidth_gbps(hardware.num_cores))
        workshop = Workshop(folder / "workshop.git")
        workshop.open()
        stack.callback(workshop.close)
        backends = agents or offline_agents()
        yield LoopContext(
            run=run_id,
            challenge=challenge,
            machine_id=run.machine,
            machine=Machine(challenge.device, hardware.num_cores, hardware.has_compiler),
            shape=bench.shape,
            bandwidth_gbps=memory.run(run_id).bandwidth_gbps or 0.0,
            memory=memory,
            variants=variants,
            workshop=workshop,
            evaluator=bench.evaluator,
            planner=backends.planner,
            coder=backends.coder,
            benchmarker=backends.benchmarker,
            budget=Budget(run.budget_minutes, run.budget_experiments, run.spent_s),
            seed=run.seed,
            seed_variant=seed.id,
            num_documents=bench.num_documents if challenge.quality.enabled else 0,
            unsafe_local=run.unsafe,
            emit=emit,
            stopping=stack.enter_context(_stop_on_interrupt(emit)),
        )


def resume(
    run_id: str,
    memory: Memory,
    *,
    emit: Emit = lambda _: None,
    agents: Agents | None = None,
    evaluator: Evaluator | None = None,
    shape: ModelShape | None = None,
) -> Outcome:
    """Drive a run from where it stands to its end, or until Ctrl-C.

    Arguments and errors are those of `open_context`.
    """
    run = memory.run(run_id)
    if run.state is RunState.FINISHED:
        return _outcome(run, memory, "it was finished before")
    stop = _INTERRUPTED
    opened = open_context(
        run_id, memory, emit=emit, agents=agents, evaluator=evaluator, shape=shape
    )
    with opened as context:
        memory.update_run(run_id, state=RunState.RUNNING)
        try:
            stop = _drive(context, run_dir(run_id) / "checkpoints.db")
        except (StopRequested, KeyboardInterrupt):
            stop = _INTERRUPTED
        finally:
            if stop == _INTERRUPTED:  # errors pass through here too
                memory.update_run(
                    run_id, state=RunState.INTERRUPTED, spent_s=context.budget.spent_s
                )
    return _outcome(memory.run(run_id), memory, stop)


def _local_bench(
    run: Run, challenge: Challenge, variants: VariantStore, folder: Path, emit: Emit
) -> _Bench:
    """Fetch the model and make ready everything that no experiment should pay for."""

    def say(text: str) -> None:
        emit(Event("setup", text))

    model_dir = fetch_model(challenge.model, say)
    shape = read_shape(model_dir)
    prompts = load_prompts(challenge.workload, model_dir, shape.vocab_size)
    evaluator = LocalEvaluator(
        challenge,
        model_dir,
        prompts,
        variants.path,
        seed=run.seed,
        scratch=make_dir(folder / "baselines"),
        say=say,
    )
    evaluator.prepare()
    per_split = sum(prompt.split is Split.PUBLIC for prompt in prompts)
    return _Bench(evaluator, shape, min(challenge.quality.documents, per_split))


def _drive(context: LoopContext, checkpoints: Path) -> str:
    """Run the graph from its latest checkpoint to its end; return why it ended."""
    saver = open_checkpoints(checkpoints)
    try:
        app = build_graph().compile(checkpointer=saver)
        config: RunnableConfig = {
            "configurable": {"thread_id": context.run},
            "recursion_limit": 1_000_000,  # the budget ends the loop, not LangGraph
            "max_concurrency": 4,
        }
        snapshot = app.get_state(config)
        start: Any = None if snapshot.tasks else LoopState(run=context.run)
        if not snapshot.values.get("done"):
            # Nothing of a run leaves the machine, whatever tracing variables are set.
            with langsmith.tracing_context(enabled=False):
                for _ in app.stream(start, config, context=context, durability="sync"):
                    context.check_stop()
        final = app.get_state(config).values
        if not final.get("done"):
            raise RuntimeError(f"run {context.run} ended without its last node")
        return str(final.get("stop", ""))
    finally:
        saver.conn.close()


@contextmanager
def _stop_on_interrupt(emit: Emit) -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a request; a second one interrupts at once."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping  # only the main thread may handle signals: the host does
        return

    def request(number: int, _frame: object) -> None:
        if stopping.is_set():
            signal.default_int_handler(number, None)
        stopping.set()
        emit(Event("loop", "finishing the measurement at hand; Ctrl-C again stops at once"))

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGINT, previous)


def _outcome(run: Run, memory: Memory, stop: str) -> Outcome:
    standings = leaderboard(memory, run.challenge, run.machine)
    kept = next((s for s in standings if s.verdict == "kept"), None)
    return Outcome(run, stop, kept, standings)
