"""The secret that held-out ground truth is drawn from: made once, never told to an engine."""

import hashlib
import secrets
from datetime import UTC, datetime

from .home import data_dir, make_dir

_given: list[str] = []


def held_out_seed(salt: str = "") -> str:
    """Return this month's seed, so that what has leaked is of no use for long.

    Args:
        salt: another one gives other seeds at once (`slipstream verify --fresh-seed`).
    """
    month = datetime.now(UTC).strftime("%Y-%m")
    return hashlib.sha256(f"{secret_text()}|{month}|{salt}".encode()).hexdigest()


def secret_text() -> str:
    """Return the secret itself, for places of one's own that have to draw the same documents."""
    return _given[-1] if _given else _secret()


def use(text: str) -> None:
    """Draw from somebody else's secret from now on: that of whoever this process measures for."""
    _given.append(text)


def _secret() -> str:
    path = make_dir(data_dir()) / "secret"
    if not path.exists():
        partial = path.with_name(f".secret-{secrets.token_hex(4)}")
        partial.touch(mode=0o600)
        partial.write_text(secrets.token_hex(32))
        try:
            path.hardlink_to(partial)  # fails if another process was first
        except FileExistsError:
            pass
        finally:
            partial.unlink()
    return path.read_text()
