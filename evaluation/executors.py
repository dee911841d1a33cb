"""Executors: where measurements run.

`local` is this machine, with a worker for each of its GPUs; `ray` a Ray cluster. Each gives a bench
whose evaluator is a pool of places. `hf-jobs` is opened by `collab/opening.py`: a machine that is
rented for each experiment.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from slipstream.kernels.variants import VariantStore

from . import cluster, secret
from .bench import Bench, open_bench
from .challenge import Challenge
from .errors import SlipstreamError, WorkerLostError
from .hardware import detect_hardware, visible_gpus
from .pool import Pool
from .processes import ProcessLine
from .site import Site, look_around
from .station import Assignment, FarEvaluator, Line

LOCAL, RAY, HF_JOBS = "local", "ray", "hf-jobs"


@dataclass(frozen=True)
class Executor:
    """Where to measure, as it was asked for.

    Attributes:
        where: of local, how many places; of ray, the cluster's address; of hf-jobs, the flavor.
    """

    kind: str
    where: str = ""


def parse_executor(text: str) -> Executor:
    """Read `local[:NUMBER]`, `ray[:ADDRESS]` or `hf-jobs[:FLAVOR]`; empty means local.

    Raises:
        SlipstreamError: none of them.
    """
    kind, _, where = (text or LOCAL).partition(":")
    if kind not in (LOCAL, RAY, HF_JOBS) or (kind == LOCAL and where and not where.isdecimal()):
        raise SlipstreamError(
            f"executor {text!r}: use local, local:NUMBER, ray, ray:HOST:PORT, hf-jobs or "
            "hf-jobs:FLAVOR"
        )
    return Executor(kind, where)


def look_at(executor: Executor, challenge: Challenge) -> Site:
    """Return what kind of machine an executor measures on.

    Raises:
        SlipstreamError: it can't be reached.
    """
    if executor.kind == RAY:
        return cluster.look_at(challenge.device, executor.where)
    return look_around(challenge.device)


@contextmanager
def open_places(
    executor: Executor,
    challenge: Challenge,
    store: VariantStore,
    folder: Path,
    *,
    seed: int,
    salt: str = "",
    unsafe_local: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Bench]:
    """Open all places of an executor; stop them in the end. Arguments are those of `open_bench`.

    Raises:
        SlipstreamError: no such place, a place that is another kind of machine than the others, or
            what `open_bench` raises.
    """
    rules = challenge.model_dump(mode="json")
    assignment = Assignment(rules, seed, secret.secret_text(), salt, unsafe_local)
    if executor.kind == RAY:
        count = cluster.room(challenge.device, executor.where)
        line: Callable[[], Line] = functools.partial(
            cluster.RayLine, assignment, address=executor.where
        )
        lines = [line] * count
    else:
        gpus = _gpus(executor, challenge)
        if len(gpus) < 2:  # the one place needs no process of its own
            with open_bench(
                challenge,
                store.path,
                folder,
                seed=seed,
                salt=salt,
                unsafe_local=unsafe_local,
                say=say,
            ) as bench:
                yield bench
            return
        lines = [functools.partial(ProcessLine, assignment, gpu=gpu) for gpu in gpus]
    with far_places(lines, store) as bench:
        say(f"{len(lines)} places to measure: {bench.site.hardware.label if bench.site else ''}")
        yield bench


@contextmanager
def far_places(lines: list[Callable[[], Line]], store: VariantStore) -> Iterator[Bench]:
    """Connect to stations; hang up in the end.

    Raises:
        SlipstreamError: they aren't all the same kind of machine.
    """
    with ExitStack() as stack:
        places = [FarEvaluator(connect, store.read) for connect in lines]
        pool = Pool(places)
        stack.callback(pool.close)
        try:
            sites = [place.site() for place in places]
        except WorkerLostError as error:
            raise SlipstreamError(f"{len(lines)} places to measure: {error}") from error
        first = sites[0]
        for other in sites[1:]:
            if other.hardware.id != first.hardware.id:
                raise SlipstreamError(
                    f"places differ: {first.hardware.label} and {other.hardware.label}; speeds "
                    "from both can't go into one run: choose one kind of machine"
                )
        shape, num_documents = places[0].bench()
        yield Bench(
            pool,
            shape,
            num_documents,
            site=first,
            bandwidth=places[0].bandwidth,
            shared=True,
            places=len(places),
        )


def _gpus(executor: Executor, challenge: Challenge) -> list[str]:
    """Return the GPUs that get a worker, by the names that CUDA knows them by."""
    if challenge.device != "cuda":
        if executor.where not in ("", "1"):
            raise SlipstreamError(
                f"executor local:{executor.where}: on a CPU a measurement takes all cores, so "
                "there is one place; --parallel has more experiments in flight around it"
            )
        return []
    found = list(visible_gpus() or map(str, range(len(detect_hardware().gpus))))
    wanted = int(executor.where or len(found))
    if not 1 <= wanted <= len(found):
        raise SlipstreamError(
            f"executor local:{executor.where}: this machine shows {len(found)} GPUs"
        )
    return found[:wanted]
