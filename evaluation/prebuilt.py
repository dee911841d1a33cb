"""The shipped engine's kernels, built once a machine instead of once a process.

nvcc takes half a minute, and a run starts dozens of engines. Only source that ships is built here,
by its own builder in a process of its own; engines see the result read-only, and one whose source
an agent changed finds nothing of its name there and builds for itself.
"""

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from slipstream.kernels.variants import SEED_ENGINE

from .hardware import can_compile, detect_hardware
from .home import cache_dir, make_dir
from .sandbox import environment

_MODULE = "slipstream.kernels.engine.compiled"
_TIMEOUT_S = 900.0
_failed: set[Path] = set()  # not tried again by this process


def kernels_for(device: str, say: Callable[[str], None] = lambda _: None) -> Path | None:
    """Return the folder with a device's kernels, building them if needed; None where that fails.

    Args:
        device: "cpu" or "cuda".
    """
    if not can_compile(device):
        return None
    folder = make_dir(cache_dir() / "kernels") / f"{device}-{_key(device)}"
    if folder in _failed:
        return None
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if folder.is_dir():
            return folder
        say("building the engine's kernels, once")
        staging = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
        try:
            command = [sys.executable, "-m", _MODULE, device, str(staging)]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                timeout=_TIMEOUT_S,
                # As engines would build them, whatever variables are set here.
                env=environment(str(staging), gpu=device == "cuda"),
            )
            if done.returncode == 0:
                staging.rename(folder)
                return folder
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        except subprocess.TimeoutExpired:
            reason = f"it took more than {_TIMEOUT_S:.0f} s"
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    say(f"each engine builds its own kernels: {reason}")
    _failed.add(folder)
    return None


def _key(device: str) -> str:
    """Return what a built kernel depends on: sources, machine, torch and compiler."""
    digest = hashlib.sha256(detect_hardware().id.encode())
    for path in sorted(SEED_ENGINE.rglob("*")):
        if path.suffix in (".cpp", ".h", ".cu", ".cuh") or path.name == "compiled.py":
            digest.update(path.read_bytes())
    compiler = shutil.which("nvcc" if device == "cuda" else "c++")
    if compiler is not None:
        told = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
        digest.update(told)
    digest.update(importlib.metadata.version("torch").encode())
    return digest.hexdigest()[:16]
