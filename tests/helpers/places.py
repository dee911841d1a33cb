"""Places to measure that are slow, get lost, or wait for somebody."""

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from instant import InstantEvaluator

from slipstream.evaluation.errors import WorkerLostError
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.station import Assignment
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import Tree, VariantStore, seed_tree

BASELINE = "transformers-fp32"
HELPERS = str(Path(__file__).resolve().parent)  # on the PYTHONPATH of other processes


class Lossy(InstantEvaluator):
    """Is lost after every so many pairs; the pair that it was at is gone."""

    lost_after = 3
    losses = 0

    def pairs(
        self, variant: str, rival: str, stage: Stage, attempts: Mapping[int, int]
    ) -> Iterator[Pair]:
        for number, pair in enumerate(super().pairs(variant, rival, stage, attempts), start=1):
            if number % self.lost_after == 0:
                self.losses += 1
                raise WorkerLostError("node 3 is gone")
            yield pair


class Gated(InstantEvaluator):
    """Measures a variant with some lever value only once a gate opens."""

    def __init__(self, *arguments: object, value: str, gate: threading.Event) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.value, self.gate = value, gate

    def pairs(
        self, variant: str, rival: str, stage: Stage, attempts: Mapping[int, int]
    ) -> Iterator[Pair]:
        racing = variant != rival and stage is Stage.SCREEN
        if racing and self.value in self.read(variant).settings.values():
            assert self.gate.wait(30)
        yield from super().pairs(variant, rival, stage, attempts)


class Tenants(InstantEvaluator):
    """Remembers whether two were ever here at once."""

    overlaps = 0

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._busy = threading.Lock()

    def pairs(
        self, variant: str, rival: str, stage: Stage, attempts: Mapping[int, int]
    ) -> Iterator[Pair]:
        for pair in super().pairs(variant, rival, stage, attempts):
            if not self._busy.acquire(blocking=False):
                self.overlaps += 1
                continue
            try:
                time.sleep(0.002)
                yield pair
            finally:
                self._busy.release()


class Waiting(InstantEvaluator):
    """Takes its time over each pair, as a GPU does."""

    def pairs(
        self, variant: str, rival: str, stage: Stage, attempts: Mapping[int, int]
    ) -> Iterator[Pair]:
        for pair in super().pairs(variant, rival, stage, attempts):
            time.sleep(0.05)
            yield pair


def make_waiting(assignment: Assignment, store: VariantStore) -> Waiting:
    """Open what a station measures with: to be sent to another process."""
    return Waiting(store.read)


def broken(store: VariantStore) -> Tree:
    """Add an engine that can't be imported."""
    files = {
        **seed_tree(SEED_SETTINGS).files,
        "engine/__init__.py": b"raise RuntimeError('broken on purpose')\n",
    }
    tree = Tree(files)
    store.add(tree)
    return tree
