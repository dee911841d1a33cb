"""A bench: where measurements happen. Opening the local one needs nothing but a challenge."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from slipstream.kernels.census import ModelShape, read_shape

from . import sandbox
from .challenge import Challenge
from .evaluator import Evaluator, LocalEvaluator
from .home import make_dir
from .models import fetch_model, with_drafter
from .pairs import Pair, Stage
from .prompts import fresh_prompts, load_prompts, scored_per_split
from .site import Site
from .tenancy import alone_on


class Rehearsing(Protocol):
    """A machine whose pairs count for nothing but whether a better one is worth renting.

    Attributes:
        problem: why it can't race anything; empty if it can.
    """

    problem: str

    @property
    def bandwidth_gbps(self) -> float:
        """How fast its device reads."""
        ...

    def race(self, variant: str, rival: str, stage: Stage, count: int) -> list[Pair]:
        """Return pairs that aren't void, `count` of them at most."""
        ...

    def release(self, variant: str) -> None:
        """Free what a variant holds."""
        ...


@dataclass(frozen=True)
class Bench:
    """Where measurements happen, and on what.

    Attributes:
        num_documents: scored documents per split.
        site: the machine; None if it is the one where the loop runs.
        bandwidth: measures how fast its device reads, in GB/s.
        shared: threads may call the evaluator at once.
        places: how many calls it can answer at once, if it is shared.
        rented: measurements are jobs that cost something by themselves.
        here: of rented machines: where variants are raced before one is paid for.
    """

    evaluator: Evaluator
    shape: ModelShape
    num_documents: int
    site: Site | None = None
    bandwidth: Callable[[], float] | None = None
    shared: bool = False
    places: int = 1
    rented: bool = False
    here: Rehearsing | None = None


@contextmanager
def open_bench(
    challenge: Challenge,
    tree_of: Callable[[str], Path],
    folder: Path,
    *,
    seed: int,
    salt: str = "",
    unsafe_local: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Bench]:
    """Fetch the model, draw the prompts, choose the sandbox; stop all engines in the end.

    Args:
        tree_of: where the tree of a variant lies.
        folder: for this seed's prompts and the baselines' trees; no engine sees it.
        seed: of everything that is drawn; secret until the result is out.
        salt: another one draws other held-out documents.
        unsafe_local: run changed source even where there is no sandbox.

    Raises:
        SlipstreamError: no such model, or one without a tokenizer.
    """
    model_dir = fetch_model(challenge.model, say)
    engine_dir = with_drafter(model_dir, challenge.drafter, say)
    shape, workload = read_shape(engine_dir), challenge.workload
    prompts = load_prompts(workload, model_dir, shape.vocab_size)
    evaluator = LocalEvaluator(
        challenge,
        model_dir,
        prompts,
        fresh_prompts(workload, model_dir, shape.vocab_size, seed, folder),
        tree_of,
        engine_dir=engine_dir,
        vocab_size=shape.vocab_size,
        seed=seed,
        scratch=make_dir(folder / "baselines"),
        sandbox=sandbox.choose(gpu=challenge.device == "cuda"),
        unsafe_local=unsafe_local,
        salt=salt,
        say=say,
    )
    num_documents = scored_per_split(workload, challenge.quality.documents)
    with alone_on(challenge.device, say):
        try:
            yield Bench(evaluator, shape, num_documents)
        finally:
            evaluator.close()
