"""The watch sees other tenants, and only those."""

import os
import subprocess
import sys
import time

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
