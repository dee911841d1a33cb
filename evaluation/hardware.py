"""The machine: what it is, how fast it reads memory, what it has installed."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from .errors import SlipstreamError
from .projection import Machine


@dataclass(frozen=True)
class Hardware:
    """What a measurement depends on. `id` tells machines apart in a shared memory.

    An engine runs on one GPU, so how many others there are makes no difference.
    """

    cpu: str
    num_cores: int
    memory_gb: float
    gpus: tuple[str, ...]
    has_compiler: bool

    @property
    def id(self) -> str:
        """A short hash of processor, cores and GPU."""
        text = "|".join((self.cpu, str(self.num_cores), *self.gpus[:1]))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def label(self) -> str:
        """One line for people."""
        gpus = f", {', '.join(self.gpus)}" if self.gpus else ""
        return f"{self.cpu} ({self.num_cores} cores, {self.memory_gb:.0f} GB){gpus}"


def detect_hardware() -> Hardware:
    """Look at this machine."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Hardware(
        cpu=_cpu_name(),
        num_cores=len(os.sched_getaffinity(0)),
        memory_gb=pages * page_bytes / 1e9,
        gpus=_gpu_names(),
        has_compiler=can_compile("cpu"),
    )


def can_compile(device: str) -> bool:
    """Whether compiled kernels can be built here: for a GPU that takes nvcc, too."""
    found = any(shutil.which(name) for name in ("g++", "c++", "clang++"))
    return found and (device != "cuda" or shutil.which("nvcc") is not None)


def bandwidth_of(device: str) -> float:
    """Measure how fast a challenge's device reads its memory, in GB/s.

    Raises:
        SlipstreamError: no GPU that torch can use, where one is meant.
    """
    return profile_machine(device).gbps


def profile_machine(device: str) -> Machine:
    """Measure what a projection has to know of this machine.

    Raises:
        SlipstreamError: no GPU that torch can use, where one is meant.
    """
    if device == "cpu":
        gbps = read_bandwidth_gbps(len(os.sched_getaffinity(0)))
        return Machine(gbps, _cpu_name(), source="measured")
    script = Path(__file__).resolve().parent / "inside" / "gpu_profile.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SlipstreamError(f"the GPU's bandwidth can't be measured: {reason}")
    return Machine(**json.loads(done.stdout), source="measured")


def read_bandwidth_gbps(num_threads: int, *, size_mb: int = 256, repeats: int = 5) -> float:
    """Measure how fast the cores together read memory, in GB/s (best of `repeats`).

    Each thread multiplies its own slice of an array that no cache can hold with itself: of numpy's
    reductions that one asks least of the core for a byte.
    """
    data = np.ones(size_mb * (1 << 20) // 4, np.float32)
    slices = np.array_split(data, num_threads)
    best = float("inf")
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(lambda part: np.dot(part, part), slices))
            best = min(best, time.perf_counter() - start)
    return data.nbytes / best / 1e9


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def visible_gpus() -> tuple[str, ...] | None:
    """Return the GPUs that `CUDA_VISIBLE_DEVICES` names, numbers or UUIDs; None if it isn't set.

    CUDA shows those before the first that it doesn't know, such as -1, and none if it is empty.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return None
    return tuple(takewhile(lambda name: name not in ("", "-1"), map(str.strip, named.split(","))))


def ask_gpus(query: str, gpus: Sequence[str] | None) -> str:
    """Return what nvidia-smi answers, one line for each GPU or process; empty if it can't tell.

    Args:
        gpus: numbers or UUIDs of those that are asked about; None for all.
    """
    if shutil.which("nvidia-smi") is None or (gpus is not None and not gpus):
        return ""
    chosen = [] if gpus is None else [f"--id={','.join(gpus)}"]
    done = subprocess.run(
        ["nvidia-smi", query, "--format=csv,noheader,nounits", *chosen],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode else done.stdout.strip()


def _gpu_names() -> tuple[str, ...]:
    return tuple(ask_gpus("--query-gpu=name", visible_gpus()).splitlines())
