"""The loop as a whole, on instant measurements."""

import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from loops import Fixed, Loop

from slipstream.agents.offline_benchmarker import OfflineBenchmarker
from slipstream.agents.offline_coder import OfflineCoder
from slipstream.agents.offline_planner import OfflinePlanner
from slipstream.agents.roles import Workbench
from slipstream.evaluation.acceptance import Cause, Verdict
from slipstream.evaluation.errors import ExposedError, SlipstreamError
from slipstream.evaluation.pairs import Stage
from slipstream.graph import opening
from slipstream.graph.liveness import is_alive, run_dir
from slipstream.graph.opening import Agents
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import Tree
from slipstream.memory.leaderboard import leaderboard
from slipstream.memory.ledger import ledger
from slipstream.memory.records import REMATCH, Hypothesis, RunState


def test_a_run_finds_keeps_rejects_and_ends(loop: Loop) -> None:
    run = loop.start()
    outcome = loop.drive(run)
    assert outcome.run.state is RunState.FINISHED
    assert outcome.stop == "6 experiments done"
    assert outcome.champion is not None
    assert outcome.champion.direct
    assert outcome.champion.settings["weights"] == "int4-g32"
    races = [e for e in loop.memory.experiments(run=run) if e.hypothesis]
    assert len(races) == 6
    causes = {e.cause for e in races}
    assert {Cause.GAIN, Cause.QUALITY, Cause.NO_GAIN} <= causes
    assert len(loop.memory.findings()) == 6
    assert all(loop.memory.hypothesis(e.id).predicted_gain is not None for e in races)
    assert not is_alive(run)


def test_git_log_is_the_champions_lineage(loop: Loop) -> None:
    run = loop.start()
    outcome = loop.drive(run)
    assert outcome.champion is not None
    log = subprocess.run(
        ["git", "-C", str(run_dir(run) / "workshop.git"), "log", "--format=%D", "champion"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    names = [word for word in log if word.startswith("variant/")]
    lineage = [outcome.champion.variant]
    while parent := loop.memory.variant(lineage[-1]).parent:
        lineage.append(parent)
    assert [name.strip(",").removeprefix("variant/") for name in names] == lineage


def test_second_run_builds_on_the_first(loop: Loop) -> None:
    first = loop.drive(loop.start())
    asked = set(loop.evaluator.measured)
    run = loop.start(seed=2)
    second = loop.drive(run)
    assert first.champion is not None
    assert second.champion is not None
    start = loop.memory.experiment(f"{run}-000-inherited")
    assert start is not None
    assert start.variant == first.champion.variant
    tried_before = {variant for variant, stage, _ in asked if stage == "screen"}
    tried_again = {e.variant for e in loop.memory.experiments(run=run) if e.hypothesis}
    assert not tried_before & tried_again


def test_nothing_is_measured_twice_in_a_run(loop: Loop) -> None:
    loop.drive(loop.start())
    assert set(loop.evaluator.measured.values()) <= {1}
    assert set(loop.evaluator.scored.values()) == {1}


def fixed(*changes: dict[str, str]) -> Agents:
    return Agents(Fixed(*changes), OfflineCoder(), OfflineBenchmarker())


def test_planner_with_nothing_left_ends_the_run(loop: Loop) -> None:
    outcome = loop.drive(loop.start(), fixed({"cache": "static"}))
    assert outcome.stop == "nothing left to try"
    assert outcome.run.state is RunState.FINISHED


@pytest.mark.parametrize(
    ("how", "verdict"),
    [
        ("smoke", Verdict.FAILED),
        ("pairs", Verdict.FAILED),
        ("pairs-invalid", Verdict.INVALID),
    ],
)
def test_broken_variant_is_a_record_not_a_crash(how: str, verdict: Verdict, loop: Loop) -> None:
    loop.evaluator.broken["qkv"] = how
    run = loop.start(experiments=2)
    outcome = loop.drive(run, fixed({"fuse": "qkv"}, {"weights": "int8"}))
    races = [e for e in loop.memory.experiments(run=run) if e.hypothesis]
    assert [e.verdict for e in races] == [verdict, Verdict.KEPT]
    assert races[0].reason
    assert outcome.run.state is RunState.FINISHED


def test_starting_engine_that_fails_is_an_error_and_the_run_can_go_on(loop: Loop) -> None:
    loop.evaluator.broken["growing"] = "pairs"
    run = loop.start(experiments=1)
    with pytest.raises(SlipstreamError, match="the starting engine doesn't run here"):
        loop.drive(run)
    assert loop.memory.run(run).state is RunState.INTERRUPTED
    loop.evaluator.broken.clear()
    assert loop.drive(run).run.state is RunState.FINISHED


def test_impossible_setting_is_vetoed_without_running(loop: Loop) -> None:
    run = loop.start(experiments=1)
    loop.drive(run, fixed({"weights": "int4-g128"}))
    race = next(e for e in loop.memory.experiments(run=run) if e.hypothesis)
    assert (race.verdict, race.gain) == (Verdict.FAILED, None)
    assert "128 does not divide" in race.reason
    assert not any(variant == race.variant for variant, _, _ in loop.evaluator.measured)


def test_identical_tree_is_never_measured_twice(loop: Loop) -> None:
    loop.drive(loop.start(experiments=1), fixed({"weights": "int8", "fuse": "qkv"}))
    loop.evaluator.measured.clear()
    # The second run inherits int8+qkv; going back to the seed is a tree that was judged before.
    run = loop.start(experiments=1, seed=3)
    loop.drive(run, fixed({"weights": "dense", "fuse": "none"}))
    race = next(e for e in loop.memory.experiments(run=run) if e.hypothesis)
    assert "the same tree was judged in" in race.reason
    assert not any(stage == "screen" for _, stage, _ in loop.evaluator.measured)


def test_void_pairs_are_measured_again_even_after_a_crash(loop: Loop) -> None:
    """The next attempt has the next number: a void one on record must not swallow it."""
    loop.evaluator.disturbed = Counter({(Stage.SCREEN, 1): 1, (Stage.TEST, 0): 2})
    loop.evaluator.fails_once = {(Stage.SCREEN, 1), (Stage.TEST, 0)}
    run = loop.start(experiments=1)
    loop.drive(run, Agents(Fixed({"weights": "int8"}), OfflineCoder(), OfflineBenchmarker()))
    (race,) = [e for e in loop.memory.experiments(run=run) if e.hypothesis]
    assert race.verdict is Verdict.KEPT
    evidence = loop.memory.evidence(race.id)
    assert [pair.index for pair in evidence.counting(Stage.SCREEN)] == [0, 1, 2]
    attempts = [p.attempt for p in evidence.pairs if (p.stage, p.index) == (Stage.TEST, 0)]
    assert attempts == [0, 1, 2]
    assert [bool(p.void) for p in evidence.pairs].count(True) == 3


def test_third_disturbed_attempt_counts_and_is_told(loop: Loop) -> None:
    loop.evaluator.disturbed = Counter({(Stage.SCREEN, 1): 3, (Stage.SCREEN, 2): 2})
    run = loop.start(experiments=1)
    loop.drive(run, fixed({"weights": "int8"}))
    told = [text for text in loop.texts("benchmarker") if "counts" in text]
    assert told == [
        "pair 2 counts, the last attempt at it: others used 60% of the cores, 25% is allowed"
    ]
    assert sum("is void" in text for text in loop.texts("benchmarker")) == 4


class Meddler(OfflineCoder):
    """A coder that also edits source."""

    def implement(self, hypothesis: Hypothesis, parent: Tree, bench: Workbench) -> Tree:
        tree = super().implement(hypothesis, parent, bench)
        edited = tree.files["engine/engine.py"] + b"\n# edited\n"
        return Tree({**tree.files, "engine/engine.py": edited})


NO_SANDBOX = "bubblewrap is not installed (apt-get install bubblewrap)"


def test_changed_source_does_not_run_without_a_sandbox(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening.sandbox, "problem", lambda: NO_SANDBOX)
    agents = Agents(Fixed({"weights": "int8"}), Meddler(), OfflineBenchmarker())
    run = loop.start(experiments=1)
    loop.drive(run, agents)
    race = next(e for e in loop.memory.experiments(run=run) if e.hypothesis)
    assert race.verdict is Verdict.FAILED
    assert race.cause is Cause.EXPOSED
    assert NO_SANDBOX in race.reason
    assert "--unsafe-local" in race.reason
    assert not any(variant == race.variant for variant, _, _ in loop.evaluator.measured)


def test_what_had_no_sandbox_is_tried_where_there_is_one(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal says something of the machine, nothing of the lever or the tree."""
    agents = Agents(Fixed({"weights": "int8"}), Meddler(), OfflineBenchmarker())
    monkeypatch.setattr(opening.sandbox, "problem", lambda: NO_SANDBOX)
    loop.drive(loop.start(experiments=1), agents)
    assert ledger(loop.memory.database) == []
    (finding,) = loop.memory.findings()
    assert finding.reopen == "on a machine that has a sandbox"
    monkeypatch.setattr(opening.sandbox, "problem", lambda: "")
    loop.drive(loop.start(experiments=1, seed=2), agents)
    refused, tried = [e for e in loop.memory.experiments() if e.hypothesis]
    assert refused.variant == tried.variant
    assert (refused.cause, tried.cause) == (Cause.EXPOSED, Cause.GAIN)
    standings = leaderboard(loop.memory, "instant", loop.memory.run(tried.run).machine)
    (standing,) = [s for s in standings if s.variant == tried.variant]
    assert standing.cause == Cause.GAIN


def test_evaluator_without_a_sandbox_is_no_failure_of_the_engine(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(variant: str) -> None:
        raise ExposedError("there is no sandbox to run it in")

    monkeypatch.setattr(loop.evaluator, "smoke", refuse)
    run = loop.start(experiments=1)
    loop.drive(run, fixed({"weights": "int8"}))
    (race,) = [e for e in loop.memory.experiments(run=run) if e.hypothesis]
    assert (race.verdict, race.cause) == (Verdict.FAILED, Cause.EXPOSED)


def test_unsafe_local_is_written_on_the_finding(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening.sandbox, "problem", lambda: NO_SANDBOX)
    agents = Agents(Fixed({"weights": "int8"}), Meddler(), OfflineBenchmarker())
    loop.drive(loop.start(experiments=1, unsafe_local=True), agents)
    (finding,) = loop.memory.findings()
    assert finding.unsafe


def test_changed_source_runs_in_the_sandbox_and_is_not_called_unsafe(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening.sandbox, "problem", lambda: "")
    agents = Agents(Fixed({"weights": "int8"}), Meddler(), OfflineBenchmarker())
    loop.drive(loop.start(experiments=1, unsafe_local=True), agents)
    (finding,) = loop.memory.findings()
    assert not finding.unsafe
    (race,) = [e for e in loop.memory.experiments() if e.hypothesis]
    assert race.verdict is Verdict.KEPT


class Repairing(OfflineCoder):
    """A coder whose first try doesn't run and whose repair does."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def implement(self, hypothesis: Hypothesis, parent: Tree, bench: Workbench) -> Tree:
        return parent.with_settings({**hypothesis.settings, "fuse": "qkv"})

    def repair(
        self, hypothesis: Hypothesis, tree: Tree, error: str, bench: Workbench
    ) -> Tree | None:
        self.errors.append(error)
        return tree.with_settings(hypothesis.settings)


def test_coder_repairs_from_the_real_error(loop: Loop) -> None:
    loop.evaluator.broken["qkv"] = "smoke"
    coder = Repairing()
    run = loop.start(experiments=1)
    loop.drive(run, Agents(Fixed({"weights": "int8"}), coder, OfflineBenchmarker()))
    assert coder.errors == ["the engine's process ended (exit -9)"]
    race = next(e for e in loop.memory.experiments(run=run) if e.hypothesis)
    assert race.verdict is Verdict.KEPT


def test_round_of_several_hypotheses_keeps_the_best(loop: Loop) -> None:
    run = loop.start(experiments=3, parallel=3)
    agents = fixed({"weights": "int8"}, {"weights": "int4-g32"}, {"weights": "int4-g64"})
    outcome = loop.drive(run, agents)
    planned = {h.id for h in loop.memory.hypotheses(run) if h.lever != REMATCH}
    races = [e for e in loop.memory.experiments(run=run) if e.id in planned]
    races.sort(key=lambda e: e.id)  # parallel coders begin in any order
    assert [e.verdict for e in races] == [Verdict.KEPT, Verdict.KEPT, Verdict.REJECTED]
    assert len({loop.memory.hypothesis(e.id).round for e in races}) == 1
    assert outcome.champion is not None
    assert outcome.champion.settings["weights"] == "int4-g32"


def test_budget_of_minutes_ends_the_run(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("slipstream.graph.context.time.monotonic", lambda: now[0])
    real = loop.evaluator.pairs

    def slow(*arguments: object) -> object:
        for pair in real(*arguments):  # type: ignore[arg-type]
            now[0] += 1.0
            yield pair

    monkeypatch.setattr(loop.evaluator, "pairs", slow)
    outcome = loop.drive(loop.start(experiments=50))
    assert "budget of 5 minutes is spent" in outcome.stop
    assert outcome.run.spent_s < 5 * 60


def test_resuming_a_finished_run_changes_nothing(loop: Loop) -> None:
    run = loop.start(experiments=1)
    loop.drive(run)
    loop.evaluator.measured.clear()
    assert loop.drive(run).stop == "it was finished before"
    assert not loop.evaluator.measured


def test_two_processes_do_not_share_a_run(loop: Loop) -> None:
    from slipstream.graph.liveness import lock_of

    run = loop.start()
    run_dir(run).mkdir(parents=True)
    with lock_of(run), pytest.raises(SlipstreamError, match="worked on by another process"):
        loop.drive(run)


def test_seed_settings_are_the_first_champion(loop: Loop) -> None:
    run = loop.start(experiments=1)
    loop.drive(run)
    start = loop.memory.experiment(f"{run}-000")
    assert start is not None
    assert loop.memory.variant(start.variant).settings == SEED_SETTINGS
    assert start.cause is Cause.START


def test_no_tracing_leaves_the_machine(
    make_loop: Callable[[], Loop], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import threading

    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.setenv("LANGSMITH_API_KEY", "x")
    loop = make_loop()
    loop.drive(loop.start(experiments=1))
    assert not [t for t in threading.enumerate() if "langsmith" in repr(t).lower()]


def test_offline_planner_is_the_default(loop: Loop) -> None:
    run = loop.start(experiments=1)
    loop.drive(run)
    assert loop.memory.hypotheses(run)[0].agent == OfflinePlanner.name


def with_rules(loop: Loop, **changes: float) -> None:
    rules = loop.challenge.acceptance.model_copy(update=changes)
    loop.challenge = loop.challenge.model_copy(update={"acceptance": rules})


def test_champion_is_raced_against_the_baseline_again_after_promotions(loop: Loop) -> None:
    with_rules(loop, reverify_every=1)
    run = loop.start(experiments=3)
    loop.drive(run, fixed({"weights": "int8"}, {"threads": "1"}, {"weights": "int4-g32"}))
    checks = [e for e in loop.memory.experiments(run=run) if "-check-" in e.id]
    assert [check.id.removeprefix(run) for check in checks] == ["-check-1"]
    (kept,) = [e for e in loop.memory.experiments(run=run) if e.cause is Cause.GAIN][:1]
    assert checks[0].variant == kept.variant
    assert checks[0].rival == loop.challenge.baseline
    assert checks[0].gain is not None


def test_noise_is_measured_again_once_it_has_expired(loop: Loop) -> None:
    with_rules(loop, calibration_minutes=1e-9)
    run = loop.start(experiments=3)
    loop.drive(run)
    tests = [e.id.removeprefix(run) for e in loop.memory.experiments(run=run) if "noise" in e.id]
    assert tests == [f"-noise-{number}" for number in range(len(tests))]
    assert len(tests) == 3
    assert loop.memory.run(run).calibrations == len(tests)


def test_fresh_noise_is_measured_once_and_its_power_is_said(loop: Loop) -> None:
    run = loop.start(experiments=2)
    loop.drive(run)
    assert loop.memory.run(run).calibrations == 1
    assert any("this run can tell" in text for text in loop.texts("benchmarker"))


def test_kept_variants_are_audited_in_both_tests(loop: Loop) -> None:
    run = loop.start(experiments=1)
    loop.drive(run, fixed({"weights": "int8"}))
    (race,) = [e for e in loop.memory.experiments(run=run) if e.hypothesis]
    assert race.verdict is Verdict.KEPT
    stages = [audit.stage for audit in loop.memory.evidence(race.id).audits]
    assert set(stages) == {"test", "confirm"}
    assert all(times == 1 for times in loop.evaluator.audited.values())
