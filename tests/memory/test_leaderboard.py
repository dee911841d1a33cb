"""Speed-ups are direct where measured, chained elsewhere, and ranked."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from slipstream.evaluation.acceptance import Cause, Judgement, Verdict
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.statistics import Estimate
from slipstream.memory.chart import progress_chart, progress_frame
from slipstream.memory.frames import (
    experiments_frame,
    findings_frame,
    leaderboard_frame,
    pairs_frame,
    runs_frame,
)
from slipstream.memory.leaderboard import champion, leaderboard
from slipstream.memory.records import Experiment, Finding, Hypothesis, Run, RunState, Variant
from slipstream.memory.report import report_text, write_report
from slipstream.memory.store import Memory, open_memory

BASELINE = "transformers-bf16"


@pytest.fixture
def memory(url: str) -> Iterator[Memory]:
    """Seed 1.5× the baseline; a +20 % kept on it, a −10 % rejected, one that failed."""
    store = open_memory(url)
    rules = {"baseline": BASELINE, "tier": "near-lossless"}
    store.add_run(
        Run("r1", "c", rules, "m", "M", 1, RunState.RUNNING, 9, 9, 0, False, 0.01, 28.0, 1)
    )
    start = Judgement(
        Verdict.KEPT, Cause.START, "start", Estimate(math.log(1.5), 0.01, 6), None, 60.0
    )
    _add(store, 0, "seed", None, BASELINE, start)
    kept = Judgement(
        Verdict.KEPT, Cause.GAIN, "good", Estimate(math.log(1.2), 0.02, 12), None, 72.0
    )
    _add(store, 1, "good", "seed", "seed", kept)
    lost = Judgement(
        Verdict.REJECTED, Cause.NO_GAIN, "bad", Estimate(math.log(0.9), 0.05, 3), None, 65.0
    )
    _add(store, 2, "bad", "good", "good", lost)
    _add(store, 3, "dead", "good", "good", Judgement(Verdict.FAILED, Cause.ENGINE, "a|b"))
    yield store
    store.close()


def _add(
    store: Memory, number: int, variant: str, parent: str | None, rival: str, judgement: Judgement
) -> None:
    store.add_variant(Variant(variant, parent, "e", {"cache": variant}, "r1", number))
    name = f"r1-{number:03d}"
    hypothesis = None
    if parent is not None:
        hypothesis = name
        why = Hypothesis(
            name, "r1", number, "p", parent, "cache", {"cache": variant}, "why", 0.1, number
        )
        store.add_hypotheses([why])
    store.add_experiment(Experiment(name, "r1", hypothesis, variant, rival, number))
    finding = Finding(name, "cache", variant, 0.1, "m", "o", False, number) if hypothesis else None
    store.record(name, judgement, finding, float(number))


def test_chain_multiplies_speedups_and_widens_the_interval(memory: Memory) -> None:
    first, seed, bad, dead = leaderboard(memory, "c", "m")
    assert [first.variant, seed.variant] == ["good", "seed"]
    assert first.speedup == pytest.approx(1.8)
    assert not first.direct
    assert seed.direct
    assert first.speedup_low is not None
    assert first.speedup_high is not None
    assert seed.speedup_low is not None
    assert first.speedup_low < 1.8 < first.speedup_high
    assert first.speedup / first.speedup_low > 1.5 / seed.speedup_low
    assert (bad.variant, bad.speedup) == ("bad", pytest.approx(1.62))
    assert (dead.speedup, dead.verdict) == (None, "failed")


def test_direct_measurement_replaces_the_chain(memory: Memory) -> None:
    final = Judgement(Verdict.KEPT, Cause.START, "v", Estimate(math.log(1.7), 0.02, 12), None, 71.0)
    memory.add_experiment(Experiment("r1-final", "r1", None, "good", BASELINE, 9))
    memory.record("r1-final", final, None, 10.0)
    first = leaderboard(memory, "c", "m")[0]
    assert (first.variant, first.speedup, first.direct) == ("good", pytest.approx(1.7), True)
    assert first.verdict == "kept"
    assert first.experiments == 2


def test_champion_is_the_fastest_kept(memory: Memory) -> None:
    found = champion(memory, "c", "m")
    assert found is not None
    assert found.variant == "good"
    assert champion(memory, "c", "another machine") is None
    assert champion(memory, "another challenge", "m") is None


def test_frames_have_a_row_for_each(memory: Memory) -> None:
    assert len(runs_frame(memory)) == 1
    frame = experiments_frame(memory)
    assert list(frame["verdict"]) == ["kept", "kept", "rejected", "failed"]
    assert frame["gain"].iloc[1] == pytest.approx(0.2)
    assert frame["predicted"].iloc[1] == 0.1
    assert isinstance(frame["started_at"].dtype, pd.DatetimeTZDtype)
    assert len(findings_frame(memory)) == 3
    assert len(leaderboard_frame(memory, "c", "m")) == 4
    assert pairs_frame(memory, "r1-001").empty
    noisy = Pair(Stage.SCREEN, 0, ("p", "q"), "ABBA", 10.0, 9.0, void="others used 60%")
    memory.add_pair("r1-001", noisy)
    memory.add_pair("r1-001", replace(noisy, attempt=1, void=""))
    assert list(pairs_frame(memory, "r1-001")["attempt"]) == [1]
    frame = pairs_frame(memory, "r1-001", void=True)
    assert list(frame["void"]) == ["others used 60%", ""]
    assert "tokens" not in frame
    assert "steal" in frame


def test_progress_is_a_staircase_of_what_was_believed(memory: Memory) -> None:
    frame = progress_frame(memory, memory.run("r1"))
    assert list(frame["number"]) == [0, 1, 2, 3]
    assert list(frame["speedup"].round(3))[:3] == [1.5, 1.8, 1.62]
    chart = progress_chart(memory, memory.run("r1")).to_dict()
    assert chart["layer"][0]["mark"]["interpolate"] == "step-after"


def test_report_is_markdown_with_a_chart(memory: Memory, tmp_path: Path) -> None:
    path = write_report(memory, memory.run("r1"), tmp_path / "out")
    text = path.read_text()
    assert "**1.80× transformers-bf16**" in text
    assert "### r1-003: failed" in text
    assert "a\\|b" in text
    svg = (path.parent / "progress.svg").read_text()
    assert svg.startswith("<svg")
    assert svg.count("<path") > 4


def test_report_of_a_run_that_has_only_begun(memory: Memory, tmp_path: Path) -> None:
    rules = {"baseline": BASELINE, "tier": "near-lossless"}
    empty = Run("r2", "other", rules, "m", "M", 1, RunState.RUNNING, 9, 9, 0, False, None, None, 2)
    memory.add_run(empty)
    assert "## Leaderboard" in report_text(memory, empty)
    assert write_report(memory, empty, tmp_path / "out").exists()
