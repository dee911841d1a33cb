"""Where slipstream keeps things.

Models can be fetched again, so they live in the cache; memory, variants and workshops can't, so
they live with the user's data, which cache cleaners leave alone. `SLIPSTREAM_HOME` moves both.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import SlipstreamError

_moved: list[Path] = []


@contextmanager
def moved_to(home: Path) -> Iterator[None]:
    """Keep data in another folder for a while, whatever the environment says; the cache stays."""
    _moved.append(home)
    try:
        yield
    finally:
        _moved.remove(home)


def cache_dir() -> Path:
    """Return the folder for models and reference answers (`~/.cache/slipstream`)."""
    return _base("XDG_CACHE_HOME", ".cache")


def data_dir() -> Path:
    """Return the folder for memory, variants and runs (`~/.local/share/slipstream`)."""
    return _moved[-1] if _moved else _base("XDG_DATA_HOME", ".local/share")


def make_dir(path: Path) -> Path:
    """Create a folder and its parents.

    Raises:
        SlipstreamError: it can't be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SlipstreamError(
            f"can't create {path}: {error.strerror}; set SLIPSTREAM_HOME to a writable folder"
        ) from error
    if not os.access(path, os.W_OK):
        raise SlipstreamError(
            f"no write permission in {path}; set SLIPSTREAM_HOME to a writable folder"
        )
    return path


def _base(variable: str, default: str) -> Path:
    if home := os.environ.get("SLIPSTREAM_HOME"):
        return Path(home).expanduser()
    root = os.environ.get(variable)
    return (Path(root) if root else Path.home() / default) / "slipstream"
