"""Makes a run's context ready: model, prompts, evaluator, workshop, budget, lock."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from filelock import Timeout
from pydantic import TypeAdapter

from slipstream.agents.backends import make_agents
from slipstream.agents.offline_benchmarker import OfflineBenchmarker
from slipstream.agents.offline_coder import OfflineCoder
from slipstream.agents.offline_planner import OfflinePlanner
from slipstream.agents.roles import Benchmarker, Coder, Planner
from slipstream.agents.session import Purse, Session
from slipstream.agents.specs import AgentSpecs
from slipstream.collab.opening import open_jobs
from slipstream.evaluation import sandbox
from slipstream.evaluation.acceptance import Judgement
from slipstream.evaluation.bench import Bench
from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.errors import SlipstreamError, StopRequested
from slipstream.evaluation.evaluator import Evaluator
from slipstream.evaluation.executors import HF_JOBS, LOCAL, open_places, parse_executor
from slipstream.evaluation.hardware import Hardware, bandwidth_of, can_compile, detect_hardware
from slipstream.evaluation.home import data_dir, make_dir
from slipstream.evaluation.pool import Pool
from slipstream.evaluation.redaction import redact
from slipstream.evaluation.site import Site
from slipstream.kernels.catalogue import ENGINE
from slipstream.kernels.census import ModelShape
from slipstream.kernels.levers import Machine
from slipstream.kernels.seeds import catalogue_of, seed_of, server_names
from slipstream.kernels.variants import Tree, VariantStore
from slipstream.kernels.workshop import Workshop
from slipstream.memory.cassette import Cassette, NoCassette, Recorder
from slipstream.memory.costs import Costs
from slipstream.memory.logs import LogStore
from slipstream.memory.records import Run, Variant
from slipstream.memory.store import Memory

from .claiming import ClaimedError, ClaimKeeper, this_host
from .context import Budget, Event, LoopContext
from .crew import Crew
from .liveness import lock_of, run_dir
from .witness import Witness

Emit = Callable[[Event], None]
CASSETTE, PROGRAM = "cassette.jsonl", "program.md"
SHAPE = TypeAdapter(ModelShape)


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
    tape: Cassette | None = None,
) -> Iterator[LoopContext]:
    """Make a run's context ready: model, prompts, evaluator, workshop, budget, lock.

    What `resume` drives its graph with, and what the agents' nodes need in somebody else's graph.

    Args:
        agents: backends of the roles; by default what the run was started with.
        bench: where to measure, closed by whoever opened it; this machine by default.
        tape: where what comes from outside is kept, or comes from; by default a file of the run's
            if its agents are more than the shipped code.

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
        specs = AgentSpecs(**run.agents)
        if tape is None:
            tape = Recorder(folder / CASSETTE) if specs.think else NoCassette()
        stopping = stack.enter_context(_stop_on_interrupt(emit))
        executor = parse_executor(run.executor)
        if executor.kind == LOCAL and not tape.replaying:  # before anything is fetched
            _check_machine(run, detect_hardware())
        keeper = stack.enter_context(ClaimKeeper(memory.claims, run_id))
        try:
            keeper.hold(f"run|{run_id}", holder=this_host())
        except ClaimedError as error:
            raise SlipstreamError(f"run {run_id} is being worked on: {error}") from error
        challenge = Challenge.model_validate(run.rules)
        variants = VariantStore(make_dir(data_dir() / "variants"))
        seed = _seed(challenge, variants)
        variants.add(seed)
        memory.add_variant(
            Variant(seed.id, None, seed.engine_id, seed.settings, run_id, run.started_at)
        )
        if bench is None:
            say = _setup(emit)
            if executor.kind == HF_JOBS:
                bench = stack.enter_context(
                    open_jobs(run, challenge, memory, variants, executor.where, stopping, say)
                )
            else:
                bench = stack.enter_context(
                    open_places(
                        executor,
                        challenge,
                        variants,
                        folder,
                        seed=run.seed,
                        unsafe_local=run.unsafe,
                        say=say,
                    )
                )
        site = bench.site or _here(challenge)
        if not tape.replaying:
            _check_machine(run, site.hardware)
        no_sandbox = str(_looked_at(tape, "no sandbox", lambda: site.no_sandbox))
        if reason := no_sandbox:
            emit(Event("setup", f"no sandbox, so only the shipped engine's source runs: {reason}"))
        evaluator: Evaluator = bench.evaluator if bench.shared else Pool([bench.evaluator])
        evaluator.prepare()
        if not run.parallel:
            memory.update_run(run_id, parallel=bench.places)
        crew: Crew[Judgement | None] = Crew(run.parallel or bench.places)
        if not run.family and bench.shape.family:
            memory.update_run(run_id, family=_family(bench.shape, seed))
        if run.bandwidth_gbps is None:
            measure = bench.bandwidth or (lambda: bandwidth_of(challenge.device))
            bandwidth = tape.observe("bandwidth", measure)
            memory.update_run(run_id, bandwidth_gbps=bandwidth)
        workshop = Workshop(folder / "workshop.git")
        workshop.open()
        stack.callback(workshop.close)
        found = _looked_at(tape, "machine", lambda: _machine(challenge, site))
        tape.observe("shape", lambda: SHAPE.dump_python(bench.shape, mode="json"))
        tape.observe("documents", lambda: bench.num_documents)
        budget = Budget(run.budget_minutes, run.budget_experiments, run.spent_s)
        stack.callback(crew.close)
        stack.callback(stopping.set)  # before: whoever is in flight ends at the next pair
        session = _session(run, memory, tape, budget, emit, stopping)
        backends = agents or Agents(*make_agents(specs, session, memory))
        if not isinstance(tape, NoCassette) and not tape.replaying:
            evaluator = Witness(evaluator, tape)
        yield LoopContext(
            run=run_id,
            challenge=challenge,
            machine_id=run.machine,
            machine=Machine(**found),
            shape=bench.shape,
            bandwidth_gbps=memory.run(run_id).bandwidth_gbps or 0.0,
            memory=memory,
            variants=variants,
            workshop=workshop,
            evaluator=evaluator,
            planner=backends.planner,
            coder=backends.coder,
            benchmarker=backends.benchmarker,
            budget=budget,
            claims=keeper,
            logs=LogStore(data_dir() / "logs"),
            seed=run.seed,
            seed_variant=seed.id,
            catalogue=catalogue_of(seed),
            num_documents=bench.num_documents if challenge.quality.enabled else 0,
            session=session,
            program=folder / PROGRAM,
            no_sandbox=no_sandbox,
            unsafe_local=run.unsafe,
            approve=specs.approve,
            parallel=crew.size,
            rented=bench.rented,
            here=bench.here,
            crew=crew,
            emit=emit,
            stopping=stopping,
        )


def _seed(challenge: Challenge, variants: VariantStore) -> Tree:
    """Return the engine that a run starts from.

    Raises:
        SlipstreamError: none of this name ships or lies here.
    """
    seed = seed_of(challenge.engine)
    if seed is None and challenge.engine in variants.names():
        seed = variants.read(challenge.engine)
    if seed is None:
        raise SlipstreamError(
            f"challenge {challenge.name}: engine {challenge.engine!r} neither ships "
            f"({', '.join(server_names())}) nor lies on this machine; `--seed-engine DIR` brings it"
        )
    return seed


def _family(shape: ModelShape, seed: Tree) -> str:
    """Return what findings about levers hold for: a kind of model, on a kind of engine."""
    engine = seed.settings.get(ENGINE, "")
    return f"{shape.family} on {engine}" if engine else shape.family


def _looked_at(tape: Cassette, name: str, look: Callable[[], Any]) -> Any:
    """Return how things are now, in every session anew; in a replay, how they were."""
    if tape.replaying:
        return tape.observe(name, look)
    value = look()
    tape.note(name, value)
    return value


def _session(
    run: Run,
    memory: Memory,
    tape: Cassette,
    budget: Budget,
    emit: Emit,
    stopping: threading.Event,
) -> Session:
    """Return what thinking agents use."""

    def check_stop() -> None:
        if stopping.is_set():
            raise StopRequested

    costs = Costs(memory.database)
    return Session(
        run=run.id,
        seed=run.seed,
        costs=costs,
        purse=Purse(run.id, costs, run.budget_usd),
        cassette=tape,
        left_s=lambda: budget.left_s,
        say=lambda agent, text, fleeting: emit(Event(agent, redact(text), fleeting)),
        check_stop=check_stop,
    )


def _setup(emit: Emit) -> Callable[[str], None]:
    return lambda text: emit(Event("setup", text))


def _machine(challenge: Challenge, site: Site) -> dict[str, object]:
    return asdict(Machine(challenge.device, site.hardware.num_cores, site.has_compiler))


def _here(challenge: Challenge) -> Site:
    return Site(detect_hardware(), can_compile(challenge.device), sandbox.problem())


def _check_machine(run: Run, hardware: Hardware) -> None:
    if hardware.id != run.machine:
        raise SlipstreamError(
            f"run {run.id} was started on {run.machine_label}; speeds from {hardware.label} "
            "can't go into it: start a new run here"
        )


@contextmanager
def _stop_on_interrupt(emit: Emit) -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a request; a second one interrupts at once."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping  # only the main thread may handle signals: the host does
        return

    told = Event("loop", "finishing the measurement at hand; Ctrl-C again stops at once")
    # The signal may come while this thread is writing a line, which can't be begun twice.
    teller = threading.Thread(target=emit, args=(told,), daemon=True)

    def request(number: int, _frame: object) -> None:
        if stopping.is_set():
            signal.default_int_handler(number, None)
        stopping.set()
        teller.start()

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGINT, previous)
        if stopping.is_set() and teller.ident is not None:
            teller.join()
