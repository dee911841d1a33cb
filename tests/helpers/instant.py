"""An evaluator that answers at once: speeds follow from the bytes that the levers leave."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from slipstream.evaluation.audits import Audit
from slipstream.evaluation.baselines import is_baseline
from slipstream.evaluation.conditions import Conditions
from slipstream.evaluation.errors import EngineFailedError, InvalidOutputError
from slipstream.evaluation.gates import DocumentScore
from slipstream.evaluation.pairs import MAX_ATTEMPTS, Pair, Stage
from slipstream.evaluation.plans import Plan
from slipstream.evaluation.profiling import Component, Profile
from slipstream.evaluation.prompts import Split
from slipstream.evaluation.protocol import KernelCase
from slipstream.kernels.census import ModelShape, bytes_per_token
from slipstream.kernels.variants import Tree

SMOLLM2 = ModelShape(576, 1536, 30, 9, 3, 64, 49152)


class InstantEvaluator:
    """Satisfies `Evaluator`; remembers what it was asked to measure."""

    def __init__(self, read: Callable[[str], Tree], *, noise: float = 0.01) -> None:
        self.read, self.noise = read, noise
        self.measured: Counter[tuple[str, str, int]] = Counter()
        self.audited: Counter[tuple[str, str, int]] = Counter()
        self.scored: Counter[tuple[str, str]] = Counter()
        self.broken: dict[str, str] = {}  # lever value → how it fails
        self.disturbed: Counter[tuple[Stage, int]] = Counter()  # pair → how many attempts
        self.fails_once: set[tuple[Stage, int]] = set()  # pairs whose process dies after a void one

    def prepare(self) -> None:
        """Nothing to make."""

    def expect(self, plan: Plan) -> None:
        """Nothing: everything is there at once."""

    def smoke(self, variant: str) -> str:
        self._check(variant, "smoke")
        return ""

    def pairs(
        self, variant: str, rival: str, stage: Stage, attempts: Mapping[int, int]
    ) -> Iterator[Pair]:
        for index, attempt in attempts.items():
            self._check(variant, "pairs")
            self.measured[variant, stage, index] += 1
            names = f"{self._name(variant)}{self._name(rival)}{stage}"
            rng = np.random.default_rng([index, *names.encode()])
            wobble = 0.0 if variant == rival else rng.normal(0, self.noise)
            tps = self._tps(variant) * float(np.exp(wobble + 0.001 * (-1) ** index))
            tokens = ((index,) * 8, (index + 1,) * 8)
            pair = Pair(stage, index, ("p", "q"), "ABBA", tps, self._tps(rival), tokens)
            last = min(self.disturbed[stage, index], MAX_ATTEMPTS - 1)
            for number in range(attempt, last):
                yield replace(pair, attempt=number, void="others used 60% of the cores")
                if (stage, index) in self.fails_once:
                    self.fails_once.remove((stage, index))
                    raise EngineFailedError("the engine's process ended (exit -9)")
            conditions = Conditions(others=0.6 if self.disturbed[stage, index] > last else 0.0)
            yield replace(pair, attempt=max(attempt, last), conditions=conditions)

    def _name(self, engine: str) -> str:
        """Return what noise is drawn by: no id, which a comment in the engine's source changes."""
        return engine if is_baseline(engine) else str(sorted(self.read(engine).settings.items()))

    def scores(self, variant: str, split: Split, done: Collection[str]) -> Iterator[DocumentScore]:
        bad = "int4-g64" in self.read(variant).settings["weights"]
        for index in range(4):
            if f"d{index}" not in done:
                self.scored[variant, f"{split}-{index}"] += 1
                yield DocumentScore(f"d{index}", 50, 140.0 if bad else 100.0, 100.0, 0.0, 50)

    def audits(
        self, variant: str, pairs: Sequence[Pair], count: int, done: Collection[tuple[int, int]]
    ) -> Iterator[Audit]:
        for pair in pairs[:count]:
            if (pair.index, 0) not in done:
                self.audited[variant, pair.stage, pair.index] += 1
                yield Audit(pair.stage, pair.index, 0, 8, 8, None, 0.0, 0.0, 0, 0.0)

    def profile(self, variant: str, bandwidth_gbps: float) -> Profile:
        self._check(variant, "profile")
        token_s = 1 / self._tps(variant)
        read = sum(bytes_per_token(SMOLLM2, self.read(variant).settings).values())
        step = Component("step", read, token_s, 1.0, read / (bandwidth_gbps * 1e9) / token_s)
        return Profile((step,), token_s, 0.01, read, bandwidth_gbps)

    def test_kernels(self, variant: str, kernels: Sequence[str]) -> Sequence[KernelCase]:
        return [KernelCase(name, "one case", 0.001, 0.01, True) for name in kernels or ("norm",)]

    def release(self, variant: str) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""

    def _tps(self, name: str) -> float:
        if is_baseline(name):
            return 20.0
        read = sum(bytes_per_token(SMOLLM2, self.read(name).settings).values())
        return 28e9 / read / 3

    def _check(self, variant: str, where: str) -> None:
        for value, how in self.broken.items():
            if value in self.read(variant).settings.values() and how.startswith(where):
                if how.endswith("invalid"):
                    raise InvalidOutputError("95 tokens instead of 96")
                raise EngineFailedError("the engine's process ended (exit -9)")
