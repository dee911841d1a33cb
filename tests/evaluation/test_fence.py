"""A GPU's queue outlives a stopped process; the clock runs until it is empty."""

import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_engines import write_engine

from slipstream.evaluation import fence as fence_module
from slipstream.evaluation import sandbox
from slipstream.evaluation.child import ChildEngine
from slipstream.evaluation.conditions import Watch
from slipstream.evaluation.errors import EngineFailedError, InvalidOutputError, SlipstreamError
from slipstream.evaluation.fence import GpuFence
from slipstream.evaluation.inside.gpu_fence import usual, wait_until_idle
from slipstream.evaluation.sandbox import NoSandbox, Sandbox

QUEUES_WORK = """
import torch
class Engine:
    vocab_size = 8
    def __init__(self):
        self.a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
        self.decode(3)
    def decode(self, count):
        for _ in range(count):
            b = self.a @ self.a
        return int(b.sum().isnan())
    def generate(self, prompt, num_tokens):
        tokens = [self.decode(8) for _ in range(num_tokens)]
        for _ in range(1000 * prompt[0]):
            self.a @ self.a  # nobody waits for it
        return tokens
    def begin(self, prompt):
        raise ValueError(torch.cuda.get_device_name())
def load(tree, model_dir, max_context): return Engine()
"""


def has_gpu() -> bool:
    try:
        GpuFence().close()
    except SlipstreamError:
        return False
    return True


gpu = pytest.mark.skipif(not has_gpu(), reason="no GPU")


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_driver_it_says_so() -> None:
    with pytest.raises(SlipstreamError, match=r"^GPU 0: .*; check the driver with nvidia-smi$"):
        GpuFence()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "t" / "engine").mkdir(parents=True)
    (tmp_path / "t" / "engine" / "__init__.py").write_text(QUEUES_WORK)
    return tmp_path / "t"


@pytest.fixture
def fence() -> Iterator[GpuFence]:
    with GpuFence() as opened:
        yield opened


@gpu
@pytest.mark.skipif(bool(sandbox.problem()), reason=sandbox.problem())
def test_sandboxed_engine_has_the_gpu_and_pays_for_what_it_queues(
    tree: Path, fence: GpuFence
) -> None:
    def start() -> ChildEngine:
        return ChildEngine(tree, tree, max_context=64, sandbox=Sandbox(gpu=True), fence=fence)

    with start() as hostile, start() as rival:
        with pytest.raises(EngineFailedError, match=r"ValueError: .*[A-Z]"):
            rival.begin([0])
        for engine in (hostile, rival):
            engine.generate([0], 32)
        alone = statistics.median(rival.generate([0], 32).duration_s for _ in range(7))
        own, beside = [], []
        for _ in range(7):
            own.append(hostile.generate([1], 32).duration_s)
            beside.append(rival.generate([0], 32).duration_s)
        assert statistics.median(own) > 2 * alone
        assert statistics.median(beside) < 1.1 * alone
        watch = Watch(gpu=True, max_disturbance=9.0)
        watch.start(rival.cpu_s)
        conditions = watch.stop()
        assert conditions.tenants in (0, None)
        assert watch.verdict(conditions) == ""


@gpu
def test_endless_work_is_invalid(tree: Path) -> None:
    with (
        GpuFence(timeout_s=0.02) as hurried,
        ChildEngine(
            tree, tree, max_context=64, sandbox=NoSandbox(gpu=True), fence=hurried
        ) as hostile,
        pytest.raises(InvalidOutputError, match=r"still at work 0.02 s after the answer"),
    ):
        hostile.generate([1], 32)


@gpu
def test_without_a_fence_the_rival_pays(tree: Path) -> None:
    """The attack works; it is the fence that stops it."""
    with (
        ChildEngine(tree, tree, max_context=64, sandbox=NoSandbox(gpu=True)) as hostile,
        ChildEngine(tree, tree, max_context=64, sandbox=NoSandbox(gpu=True)) as rival,
    ):
        for engine in (hostile, rival):
            engine.generate([0], 32)
        alone = statistics.median(rival.generate([0], 32).duration_s for _ in range(7))
        hostile.generate([1], 32)
        assert rival.generate([0], 32).duration_s > 1.5 * alone


# What follows needs no GPU.


class Scripted:
    """A GPU whose empty kernels take as long as it is told; the clock moves by as much."""

    def __init__(self, taken_s: list[float]) -> None:
        self.taken_s, self.now = iter(taken_s), 100.0

    def probe(self) -> float:
        taken_s = next(self.taken_s)
        self.now += taken_s
        return taken_s


QUICK = 1e-5


def waited(taken_s: list[float], monkeypatch: pytest.MonkeyPatch, timeout_s: float = 1.0) -> float:
    gpu = Scripted(taken_s)
    monkeypatch.setattr("slipstream.evaluation.inside.gpu_fence.time.perf_counter", lambda: gpu.now)
    return wait_until_idle(gpu, QUICK, timeout_s)  # type: ignore[arg-type]


def test_idle_gpu_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert waited([QUICK] * 12, monkeypatch) == 0.0


def test_wait_ends_with_the_last_slow_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """One or two quick ones in between don't count: they slipped in between two turns."""
    turns = [0.002, QUICK, QUICK, 0.003, *[QUICK] * 11, 0.004, *[QUICK] * 12]
    assert waited(turns, monkeypatch) == pytest.approx(0.009 + 13 * QUICK)


def test_endless_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert math.isnan(waited([0.3] * 4, monkeypatch))


def test_baseline_is_a_quick_kernel_although_a_neighbour_comes_and_goes() -> None:
    assert usual(Scripted([0.002] * 170 + [QUICK] * 30)) == QUICK  # type: ignore[arg-type]


def test_busy_gpu_is_refused() -> None:
    with pytest.raises(OSError, match=r"takes 2000 µs, so other processes compute on it"):
        usual(Scripted([0.002] * 190 + [QUICK] * 10))  # type: ignore[arg-type]


GENERATE = "return [(sum(prompt) + i) % 8 for i in range(num_tokens)]"


class FakeFence(GpuFence):
    """Waits as long as it is told, or raises."""

    def __init__(self, wait_s: float = 0.0, error: Exception | None = None) -> None:
        self.wait_s, self.error, self.waits = wait_s, error, 0

    def wait(self) -> float:
        self.waits += 1
        time.sleep(self.wait_s)
        if self.error and self.waits > 1:  # loading is waited for, too
            raise self.error
        return self.wait_s


def test_waiting_for_the_gpu_is_on_the_clock(tmp_path: Path) -> None:
    tree = write_engine(tmp_path / "t")
    quick, slow = FakeFence(), FakeFence(0.3)
    with (
        ChildEngine(tree, tree, max_context=64, fence=quick) as one,
        ChildEngine(tree, tree, max_context=64, fence=slow) as two,
    ):
        assert one.generate([1], 4).duration_s < 0.3
        assert two.generate([1], 4).duration_s >= 0.3
        two.begin([1])
    assert (quick.waits, slow.waits) == (2, 3)


@pytest.mark.parametrize("error", [InvalidOutputError("still at work"), EngineFailedError("gone")])
def test_error_of_the_fence_is_the_engines_and_carries_its_log(
    error: Exception, tmp_path: Path
) -> None:
    code = "import os; os.write(2, b'queued a lot\\n'); return [0] * num_tokens"
    tree = write_engine(tmp_path / "t", (GENERATE, code))
    with ChildEngine(tree, tree, max_context=64, fence=FakeFence(error=error)) as engine:
        with pytest.raises(type(error), match=str(error)) as caught:
            engine.generate([1], 1)
        assert caught.value.log == "queued a lot"  # type: ignore[attr-defined]
        before = engine.cpu_s()
        time.sleep(0.2)
        assert engine.cpu_s() - before < 0.03


ANSWERS = """
import socket, struct, sys, time
sock = socket.socket(fileno=int(sys.argv[1]))
sock.sendall(struct.pack(">d", 1e-5))
sock.recv(1)
"""


@pytest.mark.parametrize(
    ("then", "reason"),
    [("sys.exit(1)", "its process ended"), ("time.sleep(60)", "timed out")],
)
def test_fence_that_dies_or_hangs_is_closed_and_can_be_started_again(
    then: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "fence.py"
    script.write_text(ANSWERS + then)
    monkeypatch.setattr(fence_module, "_SCRIPT", script)
    with GpuFence(timeout_s=0.01) as fence:
        first = fence._process
        with pytest.raises(EngineFailedError, match=f"^GPU 0 doesn't tell .* idle: {reason}$"):
            fence.wait()
        with pytest.raises(EngineFailedError):  # it stays closed until it is started again
            fence.wait()
        assert first.poll() is not None
        script.write_text(ANSWERS + 'sock.sendall(struct.pack(">d", 0.5)); time.sleep(60)')
        fence.start()
        fence.start()  # changes nothing
        assert fence.wait() == 0.5
        second = fence._process
    assert second.poll() is not None
    fence.close()


def test_fence_that_refuses_to_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "fence.py"
    script.write_text("raise OSError('an empty kernel takes 900 µs')")
    monkeypatch.setattr(fence_module, "_SCRIPT", script)
    with pytest.raises(SlipstreamError, match=r"^GPU 0: OSError: an empty kernel takes 900 µs; "):
        GpuFence()
