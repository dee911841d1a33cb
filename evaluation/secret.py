"""The secret that held-out ground truth is drawn from: made once, never told to an engine."""

import hashlib
import secrets
from datetime import UTC, datetime

from .home import data_dir, make_dir


def held_out_seed(salt: str = "") -> str:
    """Return this month's seed, so that what has leaked is of no use for long.

    Args:
        salt: another one gives other seeds at once (`slipstream verify --fresh-seed`).
    """
    month = datetime.now(UTC).strftime("%Y-%m")
    return hashlib.sha256(f"{_secret()}|{month}|{salt}".encode()).hexdigest()


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
