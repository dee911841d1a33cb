"""The ladder: what is refused before it costs anything, and what is written down of each rung."""

from collections.abc import Callable

import pytest
from instant import SMOLLM2
from loops import Fixed, Loop

from slipstream.agents import offline_benchmarker
from slipstream.agents.offline_benchmarker import OfflineBenchmarker
from slipstream.agents.offline_coder import OfflineCoder
from slipstream.evaluation.acceptance import Cause, Verdict
from slipstream.evaluation.home import data_dir
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.graph import opening
from slipstream.graph.ladder import ceiling_tps
from slipstream.graph.opening import Agents
from slipstream.kernels.catalogue import SHIPPED
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import Tree, VariantStore
from slipstream.memory import folding
from slipstream.memory.records import Experiment, Rung


def drive(loop: Loop, *changes: dict[str, str], coder: object = None) -> list[Experiment]:
    run = loop.start(experiments=len(changes), unsafe_local=True)
    coder = coder or OfflineCoder()
    loop.drive(run, Agents(Fixed(*changes), coder, OfflineBenchmarker()))  # type: ignore[arg-type]
    return [e for e in loop.memory.experiments(run=run) if e.hypothesis]


def rungs(loop: Loop, experiment: Experiment) -> dict[str, Rung]:
    return {rung.rung: rung for rung in loop.memory.rungs(experiment.id)}


def test_each_rung_is_written_down_and_the_last_says_why(loop: Loop) -> None:
    kept, coarse = drive(loop, {"weights": "int8"}, {"weights": "int4-g64"})
    climbed = rungs(loop, kept)
    assert list(climbed) == ["tiny input", "bytes", "screen", "quality", "test", "confirmation"]
    assert {rung.outcome for rung in climbed.values()} == {"passed"}
    assert all(rung.wall_s >= 0 and rung.usd is None for rung in climbed.values())
    fallen = rungs(loop, coarse)
    assert coarse.cause is Cause.QUALITY
    assert list(fallen)[-1] == "quality"
    assert fallen["quality"].outcome == "refused"
    assert fallen["quality"].reason == coarse.reason
    assert fallen["screen"].outcome == "passed"


def test_what_can_not_be_faster_is_not_measured(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 9 GB/s int8 can do 50 tokens/s at most; the champion does 66."""
    monkeypatch.setattr(opening, "bandwidth_of", lambda _: 9.0)
    kept, slow = drive(loop, {"weights": "int4-g32"}, {"weights": "int8"})
    assert kept.verdict is Verdict.KEPT
    assert (slow.verdict, slow.cause) == (Verdict.REJECTED, Cause.VETO)
    assert "byte arithmetic: at 9 GB/s at most 50 tokens/s" in slow.reason
    assert not any(variant == slow.variant for variant, stage, _ in loop.evaluator.measured
                   if stage == "test")  # fmt: skip
    assert list(rungs(loop, slow)) == ["tiny input", "bytes"]
    assert rungs(loop, slow)["bytes"].outcome == "refused"


def test_drafts_and_new_source_are_not_bound_by_bytes(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Editing(OfflineCoder):
        def implement(self, hypothesis, parent, bench):  # type: ignore[no-untyped-def]
            tree = super().implement(hypothesis, parent, bench)
            files = {**tree.files, "engine/extra.py": b"# nothing\n"}
            return type(tree)(files)

    monkeypatch.setattr(opening, "bandwidth_of", lambda _: 0.5)
    monkeypatch.setattr(opening.sandbox, "problem", lambda: "")
    (edited,) = drive(loop, {"weights": "int8"}, coder=Editing())
    assert rungs(loop, edited)["bytes"].outcome == "skipped"
    assert edited.verdict is Verdict.KEPT
    drafting = {**SEED_SETTINGS, "draft": "lookup-4"}
    assert ceiling_tps(SHIPPED, SMOLLM2, drafting, 28.0) is None


def test_what_does_not_run_on_a_tiny_input_climbs_no_further(loop: Loop) -> None:
    loop.evaluator.broken["qkv"] = "smoke"
    (broken,) = drive(loop, {"fuse": "qkv"})
    assert broken.verdict is Verdict.FAILED
    climbed = rungs(loop, broken)
    assert list(climbed) == ["tiny input"]
    assert climbed["tiny input"].outcome == "refused"
    assert "exit -9" in climbed["tiny input"].reason


class HereAtHand:
    """A machine whose speeds the test says: of variants with a lever's value, against others."""

    bandwidth_gbps = 10_000.0  # bytes take no time here: all of a token's time is the rest

    def __init__(self, read: Callable[[str], Tree], **gains: float) -> None:
        self.read, self.gains, self.problem = read, gains, ""
        self.raced: list[tuple[str, Stage]] = []

    def race(self, variant: str, rival: str, stage: Stage, count: int) -> list[Pair]:
        self.raced.append((variant, stage))
        gain = self.gains.get(self.read(variant).settings["weights"].partition("-")[0], 1.0)
        wobble = [1.01, 0.99]
        return [
            Pair(stage, i, ("p", "q"), "ABBA", 100 * gain * wobble[i % 2], 100.0, ((), ()))
            for i in range(count)
        ]

    def release(self, variant: str) -> None:
        pass


def test_a_machine_is_rented_only_for_what_may_be_faster_there(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 is 5 % faster here, where bytes cost nothing; there it reads twice what int4 does."""
    monkeypatch.setattr(opening, "bandwidth_of", lambda _: 28.0)
    loop.here = HereAtHand(VariantStore(data_dir() / "variants").read, int4=1.5, int8=1.05)
    first, second = drive(loop, {"weights": "int4-g32"}, {"weights": "int8"})
    assert first.verdict is Verdict.KEPT
    climbed = rungs(loop, first)
    assert list(climbed)[:4] == ["tiny input", "bytes", "local screen", "projection"]
    assert climbed["local screen"].reason.startswith("+50.0% on this machine")
    assert (second.verdict, second.cause) == (Verdict.REJECTED, Cause.SCREENED)
    assert "projected from 105 against 100 tokens/s here" in second.reason
    assert list(rungs(loop, second))[-1] == "projection"
    assert not loop.memory.evidence(second.id).pairs


def test_new_source_is_confirmed_here_instead(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows what it reads, so there is nothing to project from."""

    class Editing(OfflineCoder):
        def implement(self, hypothesis, parent, bench):  # type: ignore[no-untyped-def]
            tree = super().implement(hypothesis, parent, bench)
            return type(tree)({**tree.files, "engine/extra.py": b"# nothing\n"})

    monkeypatch.setattr(opening.sandbox, "problem", lambda: "")
    loop.here = HereAtHand(VariantStore(data_dir() / "variants").read, int8=1.05)
    (edited,) = drive(loop, {"weights": "int8"}, coder=Editing())
    assert [stage for _, stage in loop.here.raced] == [Stage.SCREEN, Stage.TEST]
    assert rungs(loop, edited)["local confirmation"].outcome == "passed"
    assert edited.verdict is Verdict.KEPT


def test_a_machine_that_can_not_race_holds_nothing_back(loop: Loop) -> None:
    class Helpless(HereAtHand):
        def race(self, variant: str, rival: str, stage: Stage, count: int) -> list[Pair]:
            self.problem = "no GPU here"
            return []

    loop.here = Helpless(VariantStore(data_dir() / "variants").read)
    (kept,) = drive(loop, {"weights": "int8"})
    assert kept.verdict is Verdict.KEPT
    assert rungs(loop, kept)["local screen"].outcome == "skipped"
    assert rungs(loop, kept)["local screen"].reason == "no GPU here"


def test_every_way_to_end_has_its_place() -> None:
    """In the lever ledger or outside of it, and in what the offline benchmarker says."""
    for cause in Cause:
        assert (cause in folding._CLASSES) != (cause in folding.NOT_RUN), cause
        assert offline_benchmarker._REOPEN[cause]
