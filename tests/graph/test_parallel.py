"""Several experiments in flight, over several places to measure."""

import threading

import pytest
from loops import Fixed, Loop
from places import Gated, Lossy, Tenants

from slipstream.agents.offline_benchmarker import OfflineBenchmarker
from slipstream.agents.offline_coder import OfflineCoder
from slipstream.agents.roles import Briefing, Proposal
from slipstream.evaluation.acceptance import Need, Verdict
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.home import data_dir
from slipstream.evaluation.pairs import Stage
from slipstream.evaluation.pool import Pool
from slipstream.graph import judge as judging
from slipstream.graph.opening import Agents
from slipstream.kernels.variants import VariantStore
from slipstream.memory.records import REMATCH, Experiment, RunState


class Opening(Fixed):
    """Opens a gate once so many hypotheses were planned."""

    def __init__(self, gate: threading.Event, after: int, *changes: dict[str, str]) -> None:
        super().__init__(*changes)
        self.gate, self.after = gate, after

    def plan(self, briefing: Briefing, count: int) -> list[Proposal]:
        if len(briefing.planned) >= self.after:
            self.gate.set()
        return super().plan(briefing, count)


def races(loop: Loop, run: str) -> dict[str, Experiment]:
    """Return experiments by what they change."""
    found = [e for e in loop.memory.experiments(run=run) if e.hypothesis]
    return {loop.memory.hypothesis(e.id).target: e for e in found}


def read_tree(loop: Loop) -> object:
    return VariantStore(data_dir() / "variants").read


def test_a_slow_one_does_not_hold_the_others(loop: Loop) -> None:
    """The gate opens when the third round begins: without rounds that overlap, it never would."""
    gate = threading.Event()
    places = [Gated(read_tree(loop), value="int8", gate=gate) for _ in range(2)]
    loop.evaluator = Pool(places)  # type: ignore[assignment]

    planner = Opening(
        gate,
        3,
        {"weights": "int8"},
        {"weights": "int4-g64"},
        {"weights": "int4-g32"},
        {"fuse": "qkv"},
    )
    run = loop.start(experiments=4)
    outcome = loop.drive(run, Agents(planner, OfflineCoder(), OfflineBenchmarker()))
    assert outcome.run.state is RunState.FINISHED
    assert loop.memory.run(run).parallel == 2  # one for each place, as nobody asked otherwise
    found = races(loop, run)
    assert found["weights=int8"].verdict is Verdict.KEPT
    assert found["weights=int4-g32"].verdict is Verdict.KEPT
    order = [e.id for e in sorted(found.values(), key=lambda e: e.decided_at or 0.0)]
    assert order.index(found["weights=int8"].id) > order.index(found["weights=int4-g32"].id)


def test_a_late_winner_counts_and_does_not_dethrone_a_faster_champion(loop: Loop) -> None:
    gate = threading.Event()
    places = [Gated(read_tree(loop), value="int8", gate=gate) for _ in range(2)]
    loop.evaluator = Pool(places)  # type: ignore[assignment]

    planner = Opening(gate, 2, {"weights": "int8"}, {"weights": "int4-g32"}, {"fuse": "qkv"})
    run = loop.start(experiments=3)
    outcome = loop.drive(run, Agents(planner, OfflineCoder(), OfflineBenchmarker()))
    assert outcome.champion is not None
    assert outcome.champion.settings["weights"] == "int4-g32"
    late = races(loop, run)["weights=int8"]
    assert late.verdict is Verdict.KEPT
    assert late.id in {finding.experiment for finding in loop.memory.findings()}
    assert any("landed late" in text for text in loop.texts("benchmarker"))


def test_a_late_winner_that_may_be_faster_races_the_champion(loop: Loop) -> None:
    gate = threading.Event()
    places = [Gated(read_tree(loop), value="int4-g32", gate=gate) for _ in range(2)]
    loop.evaluator = Pool(places)  # type: ignore[assignment]

    planner = Opening(gate, 2, {"weights": "int8"}, {"weights": "int4-g32"}, {"fuse": "qkv"})
    run = loop.start(experiments=4)
    outcome = loop.drive(run, Agents(planner, OfflineCoder(), OfflineBenchmarker()))
    assert outcome.champion is not None
    assert outcome.champion.settings["weights"] == "int4-g32"
    (rematch,) = [h for h in loop.memory.hypotheses(run) if h.lever == REMATCH]
    raced = loop.memory.experiment(rematch.id)
    assert raced is not None
    assert raced.verdict is Verdict.KEPT
    assert raced.rival == races(loop, run)["weights=int8"].variant
    assert REMATCH not in {finding.lever for finding in loop.memory.findings()}


def test_places_never_have_two_tenants_and_all_are_used(loop: Loop) -> None:
    places = [Tenants(read_tree(loop)) for _ in range(3)]
    loop.evaluator = Pool(places)  # type: ignore[assignment]
    run = loop.start(experiments=12, parallel=6)
    loop.drive(run)
    assert [place.overlaps for place in places] == [0, 0, 0]
    assert all(place.measured for place in places)
    for experiment in loop.memory.experiments(run=run):
        keys = [(p.stage, p.index) for p in loop.memory.evidence(experiment.id).pairs]
        assert len(keys) == len(set(keys))
    asked = sum(place.measured.total() for place in places)
    kept = [loop.memory.evidence(e.id).pairs for e in loop.memory.experiments(run=run)]
    assert asked == sum(map(len, kept))  # nothing was measured twice


def test_what_a_lost_place_had_told_is_kept_and_the_rest_asked_for_again(loop: Loop) -> None:
    places = [Lossy(read_tree(loop)) for _ in range(2)]
    loop.evaluator = Pool(places)  # type: ignore[assignment]
    run = loop.start(experiments=6)
    outcome = loop.drive(run)
    assert outcome.run.state is RunState.FINISHED
    assert sum(place.losses for place in places) > 10
    for experiment in loop.memory.experiments(run=run):
        assert experiment.verdict is not Verdict.FAILED
        pairs = loop.memory.evidence(experiment.id).pairs
        keys = [(pair.stage, pair.index) for pair in pairs]
        assert len(keys) == len(set(keys))


def test_a_place_that_is_lost_over_and_over_ends_the_run_and_loses_nothing(loop: Loop) -> None:
    place = Lossy(read_tree(loop))
    loop.evaluator = Pool([place])  # type: ignore[assignment]
    run = loop.start(experiments=2)
    place.lost_after = 1
    with pytest.raises(SlipstreamError, match="20 places to measure were lost over it"):
        loop.drive(run)
    place.lost_after = 10_000
    assert loop.drive(run).run.state is RunState.FINISHED


def test_an_interrupted_run_goes_on_with_what_was_in_flight(loop: Loop) -> None:
    evaluator = loop.evaluator
    run = loop.start(experiments=6, parallel=3)
    real, calls = evaluator.pairs, []

    def breaking(*arguments):  # type: ignore[no-untyped-def]
        for pair in real(*arguments):
            calls.append(pair)
            if pair.stage is Stage.TEST and len(calls) > 40:
                raise KeyboardInterrupt
            yield pair

    evaluator.pairs = breaking  # type: ignore[method-assign]
    assert loop.drive(run).stop == "interrupted"
    evaluator.pairs = real  # type: ignore[method-assign]
    outcome = loop.drive(run)
    assert outcome.run.state is RunState.FINISHED
    found = races(loop, run)
    assert all(e.verdict is not None for e in found.values())
    for experiment in loop.memory.experiments(run=run):
        keys = [(p.stage, p.index) for p in loop.memory.evidence(experiment.id).pairs]
        assert len(keys) == len(set(keys))


def test_a_noise_floor_that_changes_in_the_middle_buys_more_pairs(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was enough to tell by the old one may not be by the new one: it flies on."""
    real, asked = judging.decide, []

    def decide(evidence, rule):  # type: ignore[no-untyped-def]
        asked.append(evidence)
        more = Need(stage=Stage.TEST, count=len(evidence.counting(Stage.TEST)) + 1)
        return more if len(asked) == 1 else real(evidence, rule)

    monkeypatch.setattr(judging, "decide", decide)
    run = loop.start(experiments=2, parallel=2)
    planner = Fixed({"weights": "int8"}, {"weights": "int4-g32"})
    outcome = loop.drive(run, Agents(planner, OfflineCoder(), OfflineBenchmarker()))
    assert outcome.run.state is RunState.FINISHED
    assert any("the noise floor has changed" in text for text in loop.texts("judge"))
    assert all(e.verdict is Verdict.KEPT for e in races(loop, run).values())


def test_two_that_made_the_same_tree_are_measured_once(loop: Loop) -> None:
    places = [Tenants(read_tree(loop)) for _ in range(2)]
    loop.evaluator = Pool(places)  # type: ignore[assignment]
    run = loop.start(experiments=2, parallel=2)
    planner = Fixed({"weights": "int8"}, {"weights": "int8"})
    loop.drive(run, Agents(planner, OfflineCoder(), OfflineBenchmarker()))
    found = [e for e in loop.memory.experiments(run=run) if e.hypothesis]
    assert [e.verdict for e in found] == [Verdict.KEPT, Verdict.KEPT]
    measured = [e for e in found if loop.memory.evidence(e.id).pairs]
    assert len(measured) == 1


def test_more_in_flight_than_the_budget_has_is_no_more_than_that(loop: Loop) -> None:
    run = loop.start(experiments=2, parallel=8)
    planner = Fixed({"weights": "int8"}, {"weights": "int4-g32"}, {"fuse": "qkv"})
    loop.drive(run, Agents(planner, OfflineCoder(), OfflineBenchmarker()))
    assert len([h for h in loop.memory.hypotheses(run) if h.lever != REMATCH]) == 2
