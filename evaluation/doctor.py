"""What a user should know of this machine before trusting a figure from it."""

import importlib.util
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import sandbox
from .hardware import detect_hardware, read_bandwidth_gbps
from .home import cache_dir, data_dir
from .statistics import noise_floor
from .syscalls import refused_names

_KEYS = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "HF_TOKEN")


@dataclass(frozen=True)
class Check:
    """One thing looked at. `ok` is false where something is missing or worth knowing."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def examine() -> list[Check]:
    """Look at hardware, bandwidth, noise, compiler, sandbox, keys and folders."""
    hardware = detect_hardware()
    bandwidth = read_bandwidth_gbps(hardware.num_cores)
    return [
        Check("machine", True, f"{hardware.label}, id {hardware.id}"),
        Check(
            "gpu",
            bool(hardware.gpus),
            ", ".join(hardware.gpus) or "none",
            "" if hardware.gpus else "CPU challenges only",
        ),
        Check("memory bandwidth", True, f"{bandwidth:.1f} GB/s, all cores reading"),
        _noise(),
        Check(
            "C++ compiler",
            hardware.has_compiler,
            "found" if hardware.has_compiler else "none",
            "" if hardware.has_compiler else "apt-get install g++ enables the compile lever",
        ),
        Check(
            "git",
            shutil.which("git") is not None,
            "found" if shutil.which("git") else "none",
            "" if shutil.which("git") else "apt-get install git: runs keep their variants in it",
        ),
        _sandbox(),
        *(_key(name) for name in _KEYS),
        _folder("cache", cache_dir()),
        _folder("data", data_dir()),
        Check("torch", importlib.util.find_spec("torch") is not None, _version("torch")),
        Check("transformers", True, _version("transformers")),
    ]


def _noise() -> Check:
    """A/A test of a fixed piece of arithmetic, in the order that pairs of engines are timed."""
    ratios = []
    for _ in range(12):
        a, b = _work_s(), _work_s()
        b, a = b + _work_s(), a + _work_s()
        ratios.append((a - b) / (a + b) * 2)
    floor = noise_floor(ratios, 8)
    quiet = floor < 0.01
    return Check(
        "timing noise",
        quiet,
        f"{floor:.2%} (95th percentile of 8 A/A pairs)",
        "" if quiet else "a busy machine: small gains will stay inconclusive",
    )


def _work_s() -> float:
    start = time.perf_counter()
    total = 0
    for number in range(400_000):
        total += number
    return time.perf_counter() - start


def _sandbox() -> Check:
    """What stands between this machine and source that an agent wrote."""
    if reason := sandbox.problem():
        return Check("sandbox", False, "none", f"{reason}: changed source is refused until then")
    limits = sandbox.Limits()
    return Check(
        "sandbox",
        True,
        "bubblewrap: allow-list of mounts, no network, own namespaces, no capabilities; "
        f"seccomp refuses {len(refused_names())} system calls; {limits.memory_bytes / 1e9:.0f} GB "
        f"memory, {limits.num_tasks} tasks, {limits.scratch_bytes >> 20} MB scratch",
    )


def _key(name: str) -> Check:
    present = bool(os.environ.get(name))
    return Check(name, present, "set" if present else "not set", "" if present else "optional")


def _folder(name: str, path: Path) -> Check:
    parent = next(p for p in (path, *path.parents) if p.exists())
    free_gb = shutil.disk_usage(parent).free / 1e9
    try:
        with tempfile.TemporaryFile(dir=parent):
            writable = True
    except OSError:
        writable = False
    ok = writable and free_gb > 2
    advice = "" if ok else "needs 2 GB; SLIPSTREAM_HOME moves it"
    return Check(name, ok, f"{path} ({free_gb:.0f} GB free)", advice)


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
