"""Whose source runs where: changed source runs in the sandbox or not at all."""

from functools import cache

from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import seed_tree


@cache
def shipped_engine() -> str:
    """Return the hash of the shipped engine's source."""
    return seed_tree(SEED_SETTINGS).engine_id


def exposure(engine_id: str, no_sandbox: str) -> str:
    """Return why a source must not run here unless `--unsafe-local` is given; empty if it may.

    Args:
        engine_id: hash of the source.
        no_sandbox: why there is no sandbox; empty if there is one.
    """
    if not no_sandbox or engine_id == shipped_engine():
        return ""
    return (
        "its source was changed by an agent, and there is no sandbox to run it in: "
        f"{no_sandbox}; --unsafe-local runs it all the same"
    )
