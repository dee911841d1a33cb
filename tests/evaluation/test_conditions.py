"""The watch sees other tenants, and only those."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slipstream.evaluation import conditions, hardware
from slipstream.evaluation.conditions import Conditions, Watch, is_descendant

BUSY = "while True: pass"


def watched(own_s: float = 0.0) -> Conditions:
    watch = Watch(gpu=False, max_disturbance=0.25)
    used = iter([0.0, own_s])
    watch.start(lambda: next(used))
    time.sleep(1.0)
    return watch.stop()


def test_a_neighbour_is_seen_and_our_own_engine_is_not() -> None:
    neighbour = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        time.sleep(0.1)
        seen = watched()
        ours = watched(own_s=1.0)  # had the busy process been our engine
    finally:
        neighbour.kill()
        neighbour.wait()
    assert seen.others is not None
    assert ours.others is not None
    assert seen.others > ours.others
    assert seen.others > 0.4 / (os.cpu_count() or 1)  # it kept one core busy


def test_verdict_names_the_disturbance() -> None:
    watch = Watch(gpu=False, max_disturbance=0.25)
    assert watch.verdict(Conditions(others=0.1, steal=0.1)) == ""
    assert watch.verdict(Conditions(others=0.2, steal=0.1)).startswith("others used 30%")
    assert "thermal" in watch.verdict(Conditions(throttled="thermal slowdown"))
    assert watch.verdict(Conditions()) == ""


def test_descendants_are_told_from_others() -> None:
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    child = subprocess.Popen([sys.executable, "-c", f"{code}; input()"], stdin=-1, stdout=-1)
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    try:
        assert is_descendant(child.pid)
        assert is_descendant(grandchild)
        assert is_descendant(os.getpid())
        assert not is_descendant(os.getppid())
        assert not is_descendant(1)
        assert not is_descendant(4_000_000)
    finally:
        os.kill(grandchild, 9)
        child.kill()
        child.communicate()


def test_other_tenants_of_the_gpu_void_a_pair() -> None:
    watch = Watch(gpu=True, max_disturbance=0.25)
    assert watch.verdict(Conditions(0.0, 0.0, tenants=0)) == ""
    assert watch.verdict(Conditions(0.0, 0.0, tenants=None)) == ""
    told = watch.verdict(Conditions(0.0, 0.0, tenants=2))
    assert told == "2 other processes compute on the GPU"


OWN, FOREIGN, UNKNOWN = os.getpid(), os.getppid(), 4_000_000


@pytest.mark.parametrize(
    ("pids", "tenants"),
    [
        ([], 0),
        ([OWN], 0),
        ([OWN, FOREIGN], 1),
        ([OWN, FOREIGN, UNKNOWN], 2),
        ([UNKNOWN], None),  # a container whose driver tells the host's numbers
        ([FOREIGN, UNKNOWN], None),
    ],
)
def test_gpu_tenants_are_those_that_are_not_ours(
    pids: list[int], tenants: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(query: str) -> str:
        asked.append(query)
        return "\n".join(map(str, pids))

    monkeypatch.setattr(conditions, "_ask_gpu", answer)
    assert conditions._gpu_tenants() == tenants
    assert asked == ["--query-compute-apps=pid"]


def test_started_engine_is_no_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        monkeypatch.setattr(conditions, "_ask_gpu", lambda _: f"{child.pid}\n{FOREIGN}")
        assert conditions._gpu_tenants() == 1
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    ("named", "visible", "asked"),
    [
        (None, None, "--id=0"),
        ("2,0", ("2", "0"), "--id=2"),
        (" 1 , 3", ("1", "3"), "--id=1"),
        ("GPU-8932f937", ("GPU-8932f937",), "--id=GPU-8932f937"),
        ("1,-1,2", ("1",), "--id=1"),
        ("", (), None),
        ("-1", (), None),
    ],
)
def test_gpu_that_is_watched_is_the_one_that_cuda_shows(
    named: str | None,
    visible: tuple[str, ...] | None,
    asked: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A false nvidia-smi says what it was asked."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho $*\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert hardware.visible_gpus() == visible
    told = conditions._ask_gpu("--query-gpu=x").split()
    assert told == ([] if asked is None else ["--query-gpu=x", *told[1:-1], asked])
    every = hardware.detect_hardware().gpus
    if visible is None:
        assert len(every) == 1
        assert "--id" not in every[0]
    else:
        assert bool(every) == bool(visible)
        assert all(f"--id={','.join(visible)}" in line for line in every)
