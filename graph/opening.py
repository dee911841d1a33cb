"""Makes a run's context ready: model, prompts, evaluator, workshop, budget, lock."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from filelock import Timeout

from slipstream.agents.offline_benchmarker import OfflineBenchmarker
from slipstream.agents.offline_coder import OfflineCoder
from slipstream.agents.offline_planner import OfflinePlanner
from slipstream.agents.roles import Benchmarker, Coder, Planner
from slipstream.evaluation import sandbox
from slipstream.evaluation.bench import Bench, open_bench
from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.hardware import bandwidth_of, can_compile, detect_hardware
from slipstream.evaluation.home import data_dir, make_dir
from slipstream.kernels.levers import SEED_SETTINGS, Machine
from slipstream.kernels.variants import VariantStore, seed_tree
from slipstream.kernels.workshop import Workshop
from slipstream.memory.logs import LogStore
from slipstream.memory.records import Variant
from slipstream.memory.store import Memory

from .claiming import ClaimedError, ClaimKeeper, this_host
from .context import Budget, Event, LoopContext
from .liveness import lock_of, run_dir

Emit = Callable[[Event], None]


@dataclass(frozen=True)
class Agents:
    """The backends of the three roles; by default those that need no key."""

    planner: Planner = field(default_factory=OfflinePlanner)
    coder: Coder = field(default_factory=OfflineCoder)
    benchmarker: Benchmarker = field(default_factory=OfflineBenchmarker)


@contextmanager
def open_context(
    run_id: str,
    memory: Memory,
    *,
    emit: Emit = lambda _: None,
    agents: Agents | None = None,
    bench: Bench | None = None,
) -> Iterator[LoopContext]:
    """Make a run's context ready: model, prompts, evaluator, workshop, budget, lock.

    What `resume` drives its graph with, and what the agents' nodes need in somebody else's graph.

    Args:
        agents: backends of the roles; offline ones by default.
        bench: where to measure, closed by whoever opened it; this machine by default.

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
        keeper = stack.enter_context(ClaimKeeper(memory.claims, run_id))
        try:
            keeper.hold(f"run|{run_id}", holder=this_host())
        except ClaimedError as error:
            raise SlipstreamError(f"run {run_id} is being worked on: {error}") from error
        challenge = Challenge.model_validate(run.rules)
        if reason := sandbox.problem():
            emit(Event("setup", f"no sandbox, so only the shipped engine's source runs: {reason}"))
        variants = VariantStore(make_dir(data_dir() / "variants"))
        seed = seed_tree(SEED_SETTINGS)
        variants.add(seed)
        memory.add_variant(
            Variant(seed.id, None, seed.engine_id, seed.settings, run_id, run.started_at)
        )
        if bench is None:
            local = open_bench(
                challenge,
                variants.path,
                folder,
                seed=run.seed,
                unsafe_local=run.unsafe,
                say=lambda text: emit(Event("setup", text)),
            )
            bench = stack.enter_context(local)
        bench.evaluator.prepare()
        if not run.family and bench.shape.family:
            memory.update_run(run_id, family=bench.shape.family)
        if run.bandwidth_gbps is None:
            memory.update_run(run_id, bandwidth_gbps=bandwidth_of(challenge.device))
        workshop = Workshop(folder / "workshop.git")
        workshop.open()
        stack.callback(workshop.close)
        backends = agents or Agents()
        yield LoopContext(
            run=run_id,
            challenge=challenge,
            machine_id=run.machine,
            machine=Machine(challenge.device, hardware.num_cores, can_compile(challenge.device)),
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
            claims=keeper,
            logs=LogStore(data_dir() / "logs"),
            seed=run.seed,
            seed_variant=seed.id,
            num_documents=bench.num_documents if challenge.quality.enabled else 0,
            no_sandbox=sandbox.problem(),
            unsafe_local=run.unsafe,
            emit=emit,
            stopping=stack.enter_context(_stop_on_interrupt(emit)),
        )


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
