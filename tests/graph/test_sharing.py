"""Several runs on one memory: nobody measures what another is at, nobody repeats what is known."""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from instant import SMOLLM2, InstantEvaluator
from loops import CHALLENGE, Fixed, Loop

from slipstream.agents.offline_benchmarker import OfflineBenchmarker
from slipstream.agents.offline_coder import OfflineCoder
from slipstream.agents.roles import Briefing, Proposal
from slipstream.evaluation.acceptance import Cause, Judgement, Verdict
from slipstream.evaluation.bench import Bench
from slipstream.evaluation.challenge import parse_challenge
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.home import data_dir
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.statistics import Estimate
from slipstream.graph.context import Event
from slipstream.graph.lineage import tree_of
from slipstream.graph.opening import Agents
from slipstream.graph.session import new_run, resume
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import VariantStore, seed_tree
from slipstream.memory import claims
from slipstream.memory.board import Board
from slipstream.memory.claims import Claims, variant_key
from slipstream.memory.logs import LogStore
from slipstream.memory.records import Experiment, Variant
from slipstream.memory.store import open_memory
from slipstream.memory.upkeep import check


class Watched(InstantEvaluator):
    """Notes who measures which candidate at the same time as somebody else."""

    busy: ClassVar[dict[str, int]] = {}
    clashes: ClassVar[list[str]] = []
    lock: ClassVar[threading.Lock] = threading.Lock()

    @contextmanager
    def at(self, variant: str) -> Iterator[None]:
        with self.lock:
            self.busy[variant] = self.busy.get(variant, 0) + 1
            if self.busy[variant] > 1:
                self.clashes.append(variant)
        try:
            time.sleep(0.001)
            yield
        finally:
            with self.lock:
                self.busy[variant] -= 1

    def pairs(
        self, variant: str, rival: str, stage: Stage, attempts: Mapping[int, int]
    ) -> Iterator[Pair]:
        for pair in super().pairs(variant, rival, stage, attempts):
            with self.at(variant):
                yield pair


@pytest.fixture
def shared(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("slipstream.graph.opening.bandwidth_of", lambda _: 28.0)
    monkeypatch.setattr("slipstream.graph.claiming._ASK_AGAIN_S", 0.01)
    return url


def start(url: str, seed: int, events: list[Event], experiments: int = 5) -> str:
    """Carry one run through, with a memory and an evaluator of its own."""
    with open_memory(url) as memory:
        challenge = parse_challenge(CHALLENGE, source="test")
        run = new_run(challenge, memory, experiments=experiments, seed=seed).id
        evaluator = Watched(VariantStore(data_dir() / "variants").read)
        resume(run, memory, emit=events.append, bench=Bench(evaluator, SMOLLM2, 4))
    return run


def test_runs_at_the_same_time_never_measure_the_same_variant(shared: str) -> None:
    open_memory(shared).close()
    events: list[Event] = []
    failures: list[BaseException] = []

    def one(seed: int) -> None:
        try:
            start(shared, seed, events)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert Watched.clashes == []
    with open_memory(shared) as memory:
        measured: dict[str, list[str]] = {}
        for experiment in memory.experiments():
            # What was only copied from an earlier verdict has no gain of its own.
            if experiment.hypothesis and experiment.gain is not None:
                measured.setdefault(experiment.variant, []).append(experiment.id)
        assert len(measured) >= 5
        assert all(len(ids) == 1 for ids in measured.values()), measured
        assert memory.claims.live() == []
        claimed = [e for e in memory.experiments() if e.cause is Cause.CLAIMED]
        assert all(e.verdict is Verdict.INCONCLUSIVE for e in claimed)


def test_candidate_that_somebody_else_measures_is_left_to_them(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run was quicker: it has the claim when this one's coder is done."""
    run = loop.start(experiments=1)
    machine = loop.memory.run(run).machine

    def smoke(self: InstantEvaluator, variant: str) -> str:
        loop.memory.claims.acquire(variant_key("instant", machine, variant), "r-other")
        return ""

    monkeypatch.setattr(InstantEvaluator, "smoke", smoke)
    loop.drive(run, Agents(Fixed({"weights": "int8"}), OfflineCoder(), OfflineBenchmarker()))
    (race,) = [e for e in loop.memory.experiments(run=run) if e.hypothesis]
    assert (race.verdict, race.cause) == (Verdict.INCONCLUSIVE, Cause.CLAIMED)
    assert re.search(r"r-other is at it, for (60|59) s yet", race.reason)
    assert not any(variant == race.variant for variant, _, _ in loop.evaluator.measured)


def test_a_lost_claim_costs_the_pair_at_hand_and_nothing_else(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped past its lease in the middle of a pair: it isn't written, and measured again."""
    monkeypatch.setattr(claims, "LEASE_S", 0.5)
    real = InstantEvaluator.pairs
    slept: list[float] = []

    def pairs(
        self: InstantEvaluator, variant: str, rival: str, stage: Stage, attempts: Mapping[int, int]
    ) -> Iterator[Pair]:
        for pair in real(self, variant, rival, stage, attempts):
            if stage is Stage.TEST and pair.index == 2 and not slept:
                slept.append(1.0)
                with monkeypatch.context() as stopped:  # a stopped process renews nothing
                    stopped.setattr(Claims, "renew", lambda *_: None)
                    time.sleep(1.0)
            yield pair

    monkeypatch.setattr(InstantEvaluator, "pairs", pairs)
    run = loop.start(experiments=1)
    agents = Agents(Fixed({"weights": "int8"}), OfflineCoder(), OfflineBenchmarker())
    loop.drive(run, agents)
    (race,) = [e for e in loop.memory.experiments(run=run) if e.hypothesis]
    assert race.verdict is Verdict.KEPT
    assert slept
    assert any("nothing was written" in text for text in loop.texts("benchmarker"))
    assert loop.evaluator.measured[race.variant, Stage.TEST, 2] == 2
    assert loop.evaluator.measured[race.variant, Stage.TEST, 1] == 1
    indices = [p.index for p in loop.memory.evidence(race.id).counting(Stage.TEST)]
    assert indices == list(range(8))


def test_run_of_another_host_is_not_resumed(
    make_loop: Callable[[], Loop], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make_loop()
    run = loop.start(experiments=1)
    loop.memory.claims.acquire(f"run|{run}", "gpu-box-7-abc123")
    with pytest.raises(SlipstreamError, match=f"run {run} is being worked on: gpu-box-7-abc123"):
        loop.drive(run)


def test_other_machines_go_on_from_a_champion_whose_tree_they_never_saw(
    shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two homes stand for two machines of one kind; they share nothing but the memory."""
    events: list[Event] = []
    for home in ("one", "two"):
        monkeypatch.setenv("SLIPSTREAM_HOME", str(tmp_path / home))
        run = start(shared, 1, events, experiments=3)
    with open_memory(shared) as memory:
        (inherited,) = [e for e in memory.experiments(run=run) if e.id.endswith("inherited")]
        assert memory.variant(inherited.variant).run != run
        stores = VariantStore(tmp_path / "two/variants"), LogStore(tmp_path / "two/logs")
        assert inherited.variant in stores[0].names()
        assert check(memory, *stores, tmp_path / "two/runs") == []


def test_variant_with_changed_source_has_to_be_imported(loop: Loop) -> None:
    store = VariantStore(data_dir() / "variants")
    run = loop.start()
    loop.memory.add_variant(Variant("0123456789ab", None, "edited", SEED_SETTINGS, run, 1.0))
    with pytest.raises(SlipstreamError, match=r"its tree is not on this machine; .* bring it"):
        tree_of(loop.memory, store, "0123456789ab")


def test_island_of_an_earlier_run_is_gone_on_from(loop: Loop) -> None:
    """Its commits are made in this run's workshop, and it races the champion."""

    class Islander(Fixed):
        def plan(self, briefing: Briefing, count: int) -> list[Proposal]:
            (island, *_) = briefing.islands
            settings = {**island.settings, "cache": "static"}
            return [Proposal("cache", settings, "from there", 0.1, parent=island.best)]

    for changes in ({"weights": "int8"}, {"weights": "int4-g32"}):
        first = loop.start(experiments=1)
        loop.drive(first, Agents(Fixed(changes), OfflineCoder(), OfflineBenchmarker()))
    # Both children of the seed were kept: the second one on top of the first, so make an island.
    second = loop.start(experiments=1)
    lonely = {**SEED_SETTINGS, "fuse": "qkv"}
    tree = seed_tree(lonely)
    seed = seed_tree(SEED_SETTINGS)
    loop.memory.add_variant(Variant(tree.id, seed.id, tree.engine_id, lonely, second, 1.0))
    loop.memory.add_experiment(Experiment("x", second, None, tree.id, "transformers-bf16", 1.0))
    gain = Judgement(Verdict.KEPT, Cause.START, "slow", Estimate(0.1, 0.01, 6), None, 22.0)
    loop.memory.record("x", gain, None, 1.0)
    loop.drive(second, Agents(Islander(), OfflineCoder(), OfflineBenchmarker()))
    (race,) = [e for e in loop.memory.experiments(run=second) if e.hypothesis]
    hypothesis = loop.memory.hypothesis(race.id)
    assert hypothesis.parent == tree.id
    assert hypothesis.target == "cache=static"
    assert race.rival != tree.id
    assert loop.memory.variant(race.variant).settings["fuse"] == "qkv"
    assert race.verdict is not Verdict.FAILED


def test_gains_are_told_on_the_board(loop: Loop) -> None:
    run = loop.start(experiments=1)
    loop.drive(run, Agents(Fixed({"weights": "int8"}), OfflineCoder(), OfflineBenchmarker()))
    (said,) = Board(loop.memory.database, "reader").posts(channel="gains")
    assert said.author == run
    assert said.text.startswith("weights=int8: +")


def test_what_was_refuted_is_refused_with_its_evidence(loop: Loop) -> None:
    first = loop.start(experiments=1)
    changes: tuple[dict[str, str], ...] = ({"weights": "int4-g64"}, {"weights": "int8"})
    loop.drive(first, Agents(Fixed(changes[0]), OfflineCoder(), OfflineBenchmarker()))
    (race,) = [e for e in loop.memory.experiments(run=first) if e.hypothesis]
    assert race.cause is Cause.QUALITY
    second = loop.start(experiments=1)
    loop.drive(second, Agents(Fixed(*changes), OfflineCoder(), OfflineBenchmarker()))
    (other,) = [e for e in loop.memory.experiments(run=second) if e.hypothesis]
    assert loop.memory.hypothesis(other.id).target == "weights=int8"
    refusals = [text for text in loop.texts("planner") if text.startswith("not ")]
    assert len(refusals) == 1
    assert refusals[0].startswith(f"not weights=int4-g64: {race.id} was rejected (quality on")


def test_nothing_lossy_is_tried_where_nobody_judges_quality(loop: Loop) -> None:
    quality = loop.challenge.quality.model_copy(update={"enabled": False})
    loop.challenge = loop.challenge.model_copy(update={"quality": quality})
    run = loop.start(experiments=1)
    planner = Fixed({"skip": "8"}, {"weights": "int8"})
    loop.drive(run, Agents(planner, OfflineCoder(), OfflineBenchmarker()))
    (race,) = [e for e in loop.memory.experiments(run=run) if e.hypothesis]
    assert loop.memory.hypothesis(race.id).target == "weights=int8"
    (refusal,) = [text for text in loop.texts("planner") if text.startswith("not ")]
    assert refusal == (
        "not skip=8: skip=8: computes less than the model, and challenge instant judges no quality"
    )
