"""A GPU's queue outlives a stopped process; the clock runs until it is empty. Needs a GPU."""

import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from slipstream.evaluation import sandbox
from slipstream.evaluation.child import ChildEngine
from slipstream.evaluation.conditions import Watch
from slipstream.evaluation.errors import EngineFailedError, InvalidOutputError, SlipstreamError
from slipstream.evaluation.fence import GpuFence
from slipstream.evaluation.sandbox import Sandbox

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
        ChildEngine(tree, tree, max_context=64, fence=hurried) as hostile,
        pytest.raises(InvalidOutputError, match=r"still at work 0.02 s after the answer"),
    ):
        hostile.generate([1], 32)


@gpu
def test_without_a_fence_the_rival_pays(tree: Path) -> None:
    """The attack works; it is the fence that stops it."""
    with (
        ChildEngine(tree, tree, max_context=64) as hostile,
        ChildEngine(tree, tree, max_context=64) as rival,
    ):
        for engine in (hostile, rival):
            engine.generate([0], 32)
        alone = statistics.median(rival.generate([0], 32).duration_s for _ in range(7))
        hostile.generate([1], 32)
        assert rival.generate([0], 32).duration_s > 1.5 * alone
