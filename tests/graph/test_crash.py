"""Killed at any moment, a run goes on: nothing lost, nothing recorded or measured twice."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from loops import Loop
from tiny_challenge import write_tiny

from slipstream.evaluation.acceptance import Evidence
from slipstream.graph.context import Event
from slipstream.graph.opening import _stop_on_interrupt
from slipstream.kernels.variants import VariantStore
from slipstream.kernels.workshop import Workshop
from slipstream.memory.records import Experiment, RunState
from slipstream.memory.store import Memory


class Crash(BaseException):
    """Stands for SIGKILL: nothing may catch it, nothing runs after it."""


SIDE_EFFECTS = [
    (Memory, "_insert"),
    (Memory, "record"),
    (Memory, "update_run"),
    (VariantStore, "add"),
    (Workshop, "commit"),
    (Workshop, "promote"),
]


def crash_at(monkeypatch: pytest.MonkeyPatch, number: int, *, before: bool) -> None:
    """Crash right before or right after side effect `number`."""
    count = 0

    def wrap(real: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object, **named: object) -> object:
            nonlocal count
            count += 1
            if count == number and before:
                raise Crash
            result = real(*arguments, **named)
            if count == number:
                raise Crash
            return result

        return wrapped

    for owner, name in SIDE_EFFECTS:
        monkeypatch.setattr(owner, name, wrap(getattr(owner, name)))


def summary(loop: Loop, run: str) -> list[tuple[str, str, str | None, int, int]]:
    rows = []
    for experiment in loop.memory.experiments(run=run):
        evidence: Evidence = loop.memory.evidence(experiment.id)
        scores = sum(len(scores) for scores in evidence.scores.values())
        verdict = experiment.verdict
        rows.append((experiment.id[-6:], experiment.variant, verdict, len(evidence.pairs), scores))
    return rows


def test_crash_around_every_side_effect(
    make_loop: Callable[[], Loop], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crash before and after the k-th side effect, resume, and end where an unbroken run ends.

    Each in a home of its own: a planner that remembers would plan something else.
    """
    make_loop().memory.close()  # an empty memory, made once
    shutil.copytree(home, tmp_path / "empty")
    unbroken = make_loop()
    run = unbroken.start(experiments=2, seed=5)
    unbroken.drive(run)
    expected = [(v, n, p, s) for _, v, n, p, s in summary(unbroken, run)]
    unbroken.memory.close()

    number = 0
    crashed = True
    while crashed:
        number += 1
        # Right after one is nearly right before the next: a third of those will do.
        for before in (True, False) if number % 3 == 0 else (True,):
            shutil.copytree(tmp_path / "empty", tmp_path / f"{number}-{before}")
            monkeypatch.setenv("SLIPSTREAM_HOME", str(tmp_path / f"{number}-{before}"))
            loop = make_loop()
            run = loop.start(experiments=2, seed=5)
            with monkeypatch.context() as patch:
                crash_at(patch, number, before=before)
                try:
                    loop.drive(run)
                    crashed = False
                except Crash:
                    crashed = True
            outcome = loop.drive(run)
            assert outcome.run.state is RunState.FINISHED
            assert [(v, n, p, s) for _, v, n, p, s in summary(loop, run)] == expected
            repeated = [
                key
                for done in (loop.evaluator.measured, loop.evaluator.scored, loop.evaluator.audited)
                for key, times in done.items()
                if times > 1
            ]
            # The one measurement in flight was never acknowledged; nothing else is done again.
            assert len(repeated) <= 1, (number, before, repeated)
            loop.memory.close()
    assert number > 60


def test_sigkill_of_real_runs(tmp_path: Path, shared_home: Path, tiny_llama: Path) -> None:
    """A real run on a real model, its process killed at random moments until it is through."""
    challenge = write_tiny(tmp_path)
    shutil.copytree(shared_home / "models", tmp_path / "home" / "models")
    environment = {**os.environ, "SLIPSTREAM_HOME": str(tmp_path / "home")}
    begin = ("run", str(challenge), "--seed", "3", "--experiments", "2", "--json")
    rng = random.Random(11)

    def cli(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "slipstream.cli", *arguments]

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            cli(*arguments),
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    process = start(*begin)
    kills = 0
    while True:
        try:
            process.wait(timeout=rng.uniform(4, 14) if kills < 3 else 240)
            break
        except subprocess.TimeoutExpired:
            assert kills < 3, "the run never ended"
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        time.sleep(0.2)
        listed = subprocess.run(
            cli("runs", "--json"), env=environment, capture_output=True, text=True, check=True
        )
        rows = json.loads(listed.stdout)
        if not rows:  # killed before the run was written down
            process = start(*begin)
            continue
        assert rows[0]["state"] == "interrupted"
        process = start("resume", rows[0]["run"], "--json")
    assert process.returncode == 0
    assert kills >= 1
    assert process.stdout is not None
    last = json.loads(process.stdout.read().splitlines()[-1])
    assert last["state"] == "finished"
    memory = Memory(f"sqlite:///{tmp_path}/home/memory.db")
    races = [e for e in memory.experiments(run=last["run"]) if e.hypothesis]
    assert len(races) == last["experiments"] >= 1
    assert all(race.verdict is not None for race in races)
    for experiment in memory.experiments(run=last["run"]):
        _assert_stages_are_whole(memory, experiment)
    assert Path(last["report"]).exists()
    assert not _orphans(tmp_path)


def _assert_stages_are_whole(memory: Memory, experiment: Experiment) -> None:
    looks = (4, 8, 16)
    sizes = {"noise": (4,), "baseline": (3, 4), "screen": (2,), "test": looks, "confirm": looks}
    by_stage: dict[str, list[int]] = {}
    for pair in memory.evidence(experiment.id).pairs:
        if not pair.void:
            by_stage.setdefault(pair.stage, []).append(pair.index)
    for stage, indices in by_stage.items():
        assert indices == list(range(len(indices)))
        assert len(indices) in sizes[stage], (experiment.id, stage)


def _orphans(tmp_path: Path) -> list[str]:
    """Engines that outlived the killed processes: a sandbox mounts its tree from our folder."""
    time.sleep(0.5)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(tmp_path) in (process / "mountinfo").read_text():
                found.append((process / "cmdline").read_text())
        except OSError:  # it ended meanwhile
            continue
    return found


def test_ctrl_c_in_the_middle_of_a_line_waits_for_its_end() -> None:
    """A stream can't begin a second line in the thread that is writing one."""
    line, told = threading.Lock(), []

    def emit(event: Event) -> None:
        if line.acquire(timeout=5):
            told.append(event.text)
            line.release()

    with _stop_on_interrupt(emit) as stopping:
        with line:
            os.kill(os.getpid(), signal.SIGINT)
            assert stopping.wait(1)
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert [text[:30] for text in told] == ["finishing the measurement at h"]


def test_ctrl_c_records_and_says_how_to_resume(
    tmp_path: Path, shared_home: Path, tiny_llama: Path
) -> None:
    challenge = write_tiny(tmp_path)
    shutil.copytree(shared_home / "models", tmp_path / "home" / "models")
    environment = {**os.environ, "SLIPSTREAM_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "slipstream.cli", "run", str(challenge)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "noise: " in line:  # pairs are being measured
            break
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 130
    assert "finishing the measurement at hand" in rest
    memory = Memory(f"sqlite:///{tmp_path}/home/memory.db")
    (run,) = memory.runs()
    assert f"slipstream resume {run.id}" in rest
    assert run.state is RunState.INTERRUPTED
    assert run.spent_s > 0
