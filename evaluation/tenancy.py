"""One tenant for a GPU: whoever comes second waits, also in another process."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .hardware import visible_gpus


@contextmanager
def alone_on(device: str, say: Callable[[str], None]) -> Iterator[None]:
    """Keep other slipstreams of this machine off the GPU that engines run on; a CPU is shared.

    Two runs on one CPU see each other's work as disturbance, and measure those pairs again.
    """
    if device != "cuda":
        yield
        return
    gpu = next(iter(visible_gpus() or ()), "0")
    lock = FileLock(Path(tempfile.gettempdir()) / f"slipstream-gpu-{gpu}.lock", mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"GPU {gpu} is another slipstream's: waiting until it is free")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
