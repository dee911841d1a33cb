"""Opens a bench whose measurements are jobs of the Hub; nothing is submitted before it is asked."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from slipstream.evaluation.bench import Bench, open_bench
from slipstream.evaluation.challenge import Challenge, Quality, Workload
from slipstream.evaluation.errors import StopRequested
from slipstream.evaluation.hardware import can_compile, detect_hardware
from slipstream.evaluation.models import fetch_config
from slipstream.evaluation.prompts import scored_per_split
from slipstream.kernels.census import ModelShape, read_shape
from slipstream.kernels.fit import refusal
from slipstream.kernels.levers import Machine
from slipstream.kernels.variants import VariantStore
from slipstream.memory.records import Run
from slipstream.memory.store import Memory

from .dispatch import Terms
from .flavors import find_flavor
from .here import Here
from .hub import Hub, refuse_drafter
from .rented import RentedEvaluator

# Random models of a few layers, by what their family is called in a config.
_TINY = {"llama": "tiny-llama", "gemma3_text": "tiny-gemma3", "gemma4_text": "tiny-gemma4"}


@contextmanager
def open_jobs(
    run: Run,
    challenge: Challenge,
    memory: Memory,
    store: VariantStore,
    flavor_name: str,
    stopping: threading.Event,
    say: Callable[[str], None],
) -> Iterator[Bench]:
    """Open what a run measures with where each experiment is a job; cancel those that still run.

    Raises:
        SlipstreamError: no such flavor, no token, or one that the Hub refuses.
    """
    flavor = find_flavor(flavor_name)
    refuse_drafter(challenge)
    shape = read_shape(fetch_config(challenge.model, say))

    def check_stop() -> None:
        if stopping.is_set():
            raise StopRequested

    with ExitStack() as stack:
        tiny = TinyInput(shape, store, stack)
        here = Here(
            challenge,
            store,
            stack,
            run.seed,
            unsafe_local=run.unsafe,
            say=say,
            check_stop=check_stop,
        )
        evaluator = RentedEvaluator(
            Hub(challenge.jobs.namespace, challenge.jobs.bucket),
            flavor,
            challenge,
            memory.database,
            store.read,
            Terms(
                run.id,
                run.seed,
                run.unsafe,
                run.budget_usd,
                timeout_s=round(60 * challenge.jobs.timeout_minutes),
                per_day=challenge.jobs.per_day,
            ),
            say=say,
            check_stop=check_stop,
            try_here=tiny.try_out,
        )
        stack.callback(evaluator.close)
        yield Bench(
            evaluator,
            shape,
            scored_per_split(challenge.workload, challenge.quality.documents),
            site=flavor.site,
            bandwidth=lambda: flavor.gbps,
            shared=True,
            rented=True,
            here=here,
        )


class TinyInput:
    """Tries variants on this machine's CPU, on a random model of a few layers."""

    def __init__(self, shape: ModelShape, store: VariantStore, stack: ExitStack) -> None:
        self._shape, self._store, self._stack = shape, store, stack
        self._bench: Bench | None = None
        self._lock = threading.Lock()

    def try_out(self, variant: str) -> str:
        """Run a variant on a tiny input; return why not, if it can't be run here.

        Raises:
            EngineError: it doesn't work.
        """
        if self._shape.family not in _TINY:
            return f"no tiny model of the family {self._shape.family}"
        with self._lock:
            bench = self._bench = self._bench or self._opened()
            machine = Machine("cpu", detect_hardware().num_cores, can_compile("cpu"))
            settings = self._store.read(variant).settings
            if reason := refusal(bench.shape, settings, machine):
                return f"not on this machine's CPU: {reason}"
            try:
                return bench.evaluator.smoke(variant)
            finally:
                bench.evaluator.release(variant)

    def _opened(self) -> Bench:
        challenge = Challenge(
            name="tiny-input",
            title="a random model of a few layers",
            model=f"random:{_TINY[self._shape.family]}",
            device="cpu",
            workload=Workload(
                prompts="random-ids", num_tokens=8, num_prompts=4, prompt_tokens=8, max_context=64
            ),
            quality=Quality(enabled=False),
        )
        folder = Path(self._stack.enter_context(TemporaryDirectory()))
        opened = open_bench(challenge, self._store.path, folder, seed=0)
        return self._stack.enter_context(opened)
