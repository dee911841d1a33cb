"""The real loop on a table of measured speeds: nothing runs, and every verdict is as if it had.

Pairs are the table's speeds with the noise of A/A pairs that were measured beside it; documents are
those that each rounding was scored on, so the real gates judge; audits find nothing, because a
table's engine is what it says. Graph, memory, briefing and acceptance rule are slipstream's own.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from lever_space import DATA, SUMMARY, TABLE, Key, key_of, read_table

from slipstream.agents.roles import Briefing, Planner, Proposal
from slipstream.collab import places
from slipstream.evaluation.acceptance import Verdict
from slipstream.evaluation.audits import Audit
from slipstream.evaluation.baselines import is_baseline
from slipstream.evaluation.bench import Bench
from slipstream.evaluation.challenge import Challenge, Tier, load_challenge
from slipstream.evaluation.gates import DocumentScore, report
from slipstream.evaluation.gates import refusal as gate_refusal
from slipstream.evaluation.hardware import Hardware
from slipstream.evaluation.home import data_dir
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.plans import Plan
from slipstream.evaluation.profiling import Profile
from slipstream.evaluation.prompts import Split
from slipstream.graph import opening, session
from slipstream.graph.opening import Agents
from slipstream.kernels import fit
from slipstream.kernels.census import ModelShape
from slipstream.kernels.fit import refusal as possible
from slipstream.kernels.levers import CATALOGUE, SEED_SETTINGS, Machine
from slipstream.kernels.variants import Tree, VariantStore
from slipstream.memory.store import Memory

SHAPE = ModelShape(576, 1536, 30, 9, 3, 64, 49152, family="llama")
MACHINE = Machine("cpu", 2, True)
HARDWARE = Hardware("the table's machine", MACHINE.num_cores, 25.0, (), MACHINE.has_compiler)
Settings = dict[str, str]


@dataclass(frozen=True)
class LeverTable:
    """What was measured once.

    Attributes:
        tps: by combination and workload.
        documents: by weights, head and activations: scored documents by split.
        noise: log ratios of A/A pairs.
    """

    tps: Mapping[Key, Mapping[str, float]]
    documents: dict[tuple[str, ...], dict[str, Sequence[DocumentScore]]]
    noise: Sequence[float]
    bandwidth_gbps: float

    def key(self, settings: Settings) -> Key:
        return key_of(settings, MACHINE)

    def refusal(self, shape: ModelShape, settings: Settings, machine: Machine) -> str | None:
        """As `kernels.fit.refusal`: what wasn't measured isn't possible either."""
        if reason := possible(shape, settings, machine):
            return reason
        return None if self.key(settings) in self.tps else "not in the table"

    def speed(self, settings: Settings, workload: str) -> float:
        return self.tps[self.key(settings)][workload]

    def scores(self, settings: Settings, split: Split) -> Sequence[DocumentScore]:
        return self.documents[_rounding(settings)].get(split, ())

    def best(self, workload: str, tier: Tier) -> tuple[Settings, float]:
        """Return the fastest combination that passes the tier's gate."""
        allowed = self.allowed(tier)
        settings = max(allowed, key=lambda settings: self.speed(settings, workload))
        return settings, self.speed(settings, workload)

    def allowed(self, tier: Tier) -> list[Settings]:
        """Return the combinations whose rounding passes the tier's gate on both splits.

        A rounding that fails on the public one wasn't scored on the other.
        """
        passing = {
            rounding
            for rounding, scores in self.documents.items()
            if all(split in scores and not gate_refusal(report(scores[split]), tier)
                   for split in Split)
        }  # fmt: skip
        return [settings for settings in self.settings if _rounding(settings) in passing]

    @cached_property
    def num_documents(self) -> int:
        """How many documents of each split everything was scored on."""
        (count,) = {len(s) for documents in self.documents.values() for s in documents.values()}
        return count

    @cached_property
    def settings(self) -> list[Settings]:
        return [dict(zip(SEED_SETTINGS, key, strict=True)) for key in self.tps]


def _rounding(settings: Settings) -> tuple[str, ...]:
    found = fit.effective(settings)
    return tuple(found[name] for name in ("weights", "head", "activations"))


def load_table(folder: Path = DATA) -> LeverTable:
    """Read what `lever_table.py` has written into a folder."""
    figures: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
    documents: dict[tuple[str, ...], dict[str, Sequence[DocumentScore]]] = {
        (entry["weights"], entry["head"], entry["activations"]): {
            split.value: [DocumentScore(*row) for row in entry[split.value]["documents"]]
            for split in Split
            if split.value in entry
        }
        for entry in figures["quality"]
    }
    tps = {tuple(row.settings.values()): row.tps for row in read_table(folder / TABLE)}
    return LeverTable(tps, documents, figures["aa_pairs"], figures["bandwidth_gbps"])


class TableEvaluator:
    """Satisfies `Evaluator`."""

    def __init__(
        self, table: LeverTable, workload: str, read: Callable[[str], Tree], seed: int
    ) -> None:
        self.table, self.workload, self.read, self.seed = table, workload, read, seed
        noise = np.asarray(table.noise, float)
        self._noise = noise - noise.mean()

    def prepare(self) -> None:
        """Nothing to make."""

    def expect(self, plan: Plan) -> None:
        """Nothing: everything is there at once."""

    def smoke(self, variant: str) -> str:
        """Raises KeyError if it isn't in the table: no planner may propose that."""
        self._tps(variant)
        return ""

    def pairs(
        self, variant: str, rival: str, stage: Stage, attempts: Mapping[int, int]
    ) -> Iterator[Pair]:
        for index in attempts:
            rng = np.random.default_rng([self.seed, index, *f"{variant}{rival}{stage}".encode()])
            wobble = float(rng.choice(self._noise)) * float(rng.choice((-1.0, 1.0)))
            tps = self._tps(variant) * math.exp(wobble)
            yield Pair(stage, index, ("p", "q"), "ABBA", tps, self._tps(rival), ((0,), (0,)))

    def scores(self, variant: str, split: Split, done: Collection[str]) -> Iterator[DocumentScore]:
        for score in self.table.scores(self.read(variant).settings, split):
            if score.document not in done:
                yield score

    def audits(
        self, variant: str, pairs: Sequence[Pair], count: int, done: Collection[tuple[int, int]]
    ) -> Iterator[Audit]:
        for pair in pairs[:count]:
            if (pair.index, 0) not in done:
                yield Audit(pair.stage, pair.index, 0, 8, 8, None, 0.0, 0.0, 0, 0.0)

    def profile(self, variant: str, bandwidth_gbps: float) -> Profile:
        raise NotImplementedError("a table can't be profiled")

    def release(self, variant: str) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""

    def _tps(self, name: str) -> float:
        # No planner sees the baseline: it is given the seed's speed.
        settings = SEED_SETTINGS if is_baseline(name) else self.read(name).settings
        return self.table.speed(settings, self.workload)


@contextmanager
def in_table(table: LeverTable) -> Iterator[None]:
    """Let this process think that it is on the table's machine, with the table's levers."""

    def here() -> Hardware:
        return HARDWARE

    with (
        patch.object(fit, "refusal", table.refusal),
        patch.object(places, "detect_hardware", here),
        patch.object(opening, "detect_hardware", here),
        patch.object(opening, "can_compile", lambda _: HARDWARE.has_compiler),
    ):
        yield


def challenge_on(workload: str) -> Challenge:
    """Return the challenge that the table belongs to, on one of its workloads."""
    return load_challenge("smollm2-cpu").model_copy(update={"name": f"table-{workload}"})


class Until:
    """A planner that has nothing to propose once the champion's true speed reaches the goal."""

    def __init__(self, planner: Planner, speed: Callable[[Settings], float], goal: float) -> None:
        self.name, self._planner, self._speed, self._goal = planner.name, planner, speed, goal

    def plan(self, briefing: Briefing, count: int) -> list[Proposal]:
        there = self._speed(briefing.champion_settings) >= self._goal
        return [] if there else self._planner.plan(briefing, count)


def search(
    table: LeverTable,
    workload: str,
    planner: Planner,
    memory: Memory,
    *,
    seed: int,
    num: int,
    goal: float = math.inf,
) -> list[float]:
    """Run the loop for `num` experiments; return the champion's true tokens/s after each.

    Fewer come back if the goal is reached before, or the planner has nothing left to propose.
    """
    planner = Until(planner, lambda settings: table.speed(settings, workload), goal)
    store = VariantStore(data_dir() / "variants")
    challenge = challenge_on(workload)
    evaluator = TableEvaluator(table, workload, store.read, seed)
    bench = Bench(evaluator, SHAPE, table.num_documents)
    run = session.new_run(challenge, memory, experiments=num, minutes=1e6, seed=seed)
    memory.update_run(run.id, bandwidth_gbps=table.bandwidth_gbps)
    session.resume(run.id, memory, agents=Agents(planner=planner), bench=bench)
    champion, curve = table.speed(SEED_SETTINGS, workload), []
    for experiment in memory.experiments(run=run.id):
        if experiment.hypothesis is not None and experiment.verdict is not None:
            if experiment.verdict is Verdict.KEPT:
                champion = table.speed(memory.variant(experiment.variant).settings, workload)
            curve.append(champion)
    return curve


def levers_that_vary(table: LeverTable) -> dict[str, tuple[str, ...]]:
    """Return the values that occur in the table, by lever, in the catalogue's order."""
    seen = {(name, value) for settings in table.settings for name, value in settings.items()}
    return {
        name: tuple(value for value in lever.values if (name, value) in seen)
        for name, lever in CATALOGUE.items()
    }
