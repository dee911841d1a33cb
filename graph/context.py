"""What nodes work with: live objects that never reach a checkpoint."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from slipstream.agents.roles import Benchmarker, Coder, Planner
from slipstream.agents.session import Session
from slipstream.evaluation.acceptance import Judgement, Rule
from slipstream.evaluation.bench import Rehearsing
from slipstream.evaluation.challenge import Challenge
from slipstream.evaluation.errors import StopRequested
from slipstream.evaluation.evaluator import Evaluator
from slipstream.evaluation.redaction import redact
from slipstream.kernels.catalogue import SHIPPED, Catalogue
from slipstream.kernels.census import ModelShape
from slipstream.kernels.levers import Machine, Risk
from slipstream.kernels.variants import VariantStore
from slipstream.kernels.workshop import Workshop
from slipstream.memory.cassette import Cassette
from slipstream.memory.claims import variant_key
from slipstream.memory.logs import LogStore
from slipstream.memory.store import Memory

from .claiming import ClaimKeeper
from .crew import Crew


@dataclass(frozen=True)
class Event:
    """Something that an agent did, for whoever watches.

    A fleeting one is progress within a step: worth a look now, not worth keeping.
    """

    agent: str
    text: str
    fleeting: bool = False


@dataclass
class Budget:
    """Experiments and active seconds that a run may spend; a pause costs nothing."""

    minutes: float
    experiments: int
    spent_before_s: float = 0.0
    _started: float = field(default_factory=lambda: time.monotonic())
    _paused_s: float = 0.0

    @property
    def spent_s(self) -> float:
        """Active seconds so far, over all sessions of the run."""
        return self.spent_before_s + time.monotonic() - self._started - self._paused_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let time pass that isn't the run's: a person thinks."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._paused_s += time.monotonic() - begun

    @property
    def left_s(self) -> float:
        """Seconds left; negative when overdrawn."""
        return self.minutes * 60 - self.spent_s


@dataclass(frozen=True)
class LoopContext:
    """Dependencies of the nodes, passed as LangGraph's runtime context.

    Attributes:
        claims: what this session alone works on now.
        logs: where those of failed engines are kept.
        seed_variant: the engine that the run starts from, with no lever.
        catalogue: the levers that it has.
        num_documents: scored documents per split; 0 where quality isn't judged.
        parallel: experiments in flight at most.
        rented: measurements are jobs on machines that are rented for them.
        here: this machine, where variants are raced before one is rented.
        no_sandbox: why engines run without a sandbox; empty where they run in one.
        unsafe_local: run trees with changed source even where there is no sandbox.
        session: what thinking agents use: money, and the tape of all that came from outside.
        approve: a person looks at each change before it is measured.
        program: the researcher's own directions, a file that may change while the run goes on.
    """

    run: str
    challenge: Challenge
    machine_id: str
    machine: Machine
    shape: ModelShape
    bandwidth_gbps: float
    memory: Memory
    variants: VariantStore
    workshop: Workshop
    evaluator: Evaluator
    planner: Planner
    coder: Coder
    benchmarker: Benchmarker
    budget: Budget
    claims: ClaimKeeper
    logs: LogStore
    seed: int
    seed_variant: str
    num_documents: int
    session: Session
    program: Path
    catalogue: Catalogue = SHIPPED
    parallel: int = 1
    rented: bool = False
    here: Rehearsing | None = None
    max_repairs: int = 2
    no_sandbox: str = ""
    unsafe_local: bool = False
    approve: bool = False
    emit: Callable[[Event], None] = lambda _: None
    workshop_lock: threading.Lock = field(default_factory=threading.Lock)  # coders are parallel
    emit_lock: threading.Lock = field(default_factory=threading.Lock)
    crew: Crew[Judgement | None] = field(default_factory=lambda: Crew(1))
    stopping: threading.Event = field(default_factory=threading.Event)

    def rule(self) -> Rule:
        """Return the acceptance rule with the δ that this run's A/A test found."""
        acceptance = self.challenge.acceptance
        noise = self.memory.run(self.run).delta or 0.0
        delta = max(acceptance.min_gain, noise)
        return Rule(acceptance, self.challenge.tier, delta, self.num_documents)

    def refusal(self, settings: dict[str, str]) -> str | None:
        """Return why an engine with these settings isn't tried in this run, or None."""
        reason = self.catalogue.refusal(self.shape, settings, self.machine)
        return reason or self.unjudged(settings)

    def unjudged(self, settings: dict[str, str]) -> str | None:
        """Return which lever would lose quality where nobody judges it, or None."""
        if self.challenge.quality.enabled:
            return None
        for name, lever in self.catalogue.levers.items():
            value = settings.get(name, lever.default)
            if lever.risk is Risk.LOSSY and value != lever.default:
                return (
                    f"{name}={value}: computes less than the model, and challenge "
                    f"{self.challenge.name} judges no quality"
                )
        return None

    @property
    def tape(self) -> Cassette:
        """Where what comes from outside is kept, or comes from."""
        return self.session.cassette

    def key_of(self, variant: str) -> str:
        """Return the key that measuring a variant is claimed by."""
        return variant_key(self.challenge.name, self.machine_id, variant)

    def say(self, agent: str, text: str, *, fleeting: bool = False) -> None:
        """Tell whoever watches."""
        with self.emit_lock:
            self.emit(Event(agent, redact(text), fleeting))

    def check_stop(self) -> None:
        """Stop here if Ctrl-C was pressed; called where nothing is half done."""
        if self.stopping.is_set():
            raise StopRequested
