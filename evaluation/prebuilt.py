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

_MODULE = "slipstream.kernels.engine.compiled"
_TIMEOUT_S = 900.0


def kernels_for(device: str, say: Callable[[str], None] = lambda _: None) -> Path | None:
    """Return the folder with a device's kernels, building them if needed; None where that fails.

    Args:
        device: "cpu" or "cuda".
    """
    if not can_compile(device):
        return None
    folder = make_dir(cache_dir() / "kernels") / f"{device}-{_key(device)}"
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if folder.is_dir():
            return folder
        say("building the engine's kernels, once")
        staging = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
        try:
            command = [sys.executable, "-m", _MODULE, device, str(staging)]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
            )
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                say(f"each engine builds its own kernels: {reason}")
                return None
            staging.rename(folder)
        except subprocess.TimeoutExpired:
            say(f"each engine builds its own kernels: more than {_TIMEOUT_S:.0f} s here")
            return None
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return folder


def _key(device: str) -> str:
    """Return what a built kernel depends on: sources, machine, torch and compiler."""
    digest = hashlib.sha256(detect_hardware().id.encode())
    for path in sorted(SEED_ENGINE.rglob("*")):
        if path.suffix in (".cpp", ".h", ".cu", ".cuh") or path.name == "compiled.py":
            digest.update(path.read_bytes())
    compiler = "nvcc" if device == "cuda" else "c++"
    told = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    digest.update(importlib.metadata.version("torch").encode() + told)
    return digest.hexdigest()[:16]
