"""Whose source runs where: changed source runs in the sandbox or not at all."""

from functools import cache

from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.seeds import seed_server, server_names
from slipstream.kernels.variants import seed_tree


@cache
def shipped_engines() -> frozenset[str]:
    """Return the hashes of the sources that ship: our engine's and those of served ones."""
    servers = {seed_server(name).engine_id for name in server_names()}
    return frozenset({seed_tree(SEED_SETTINGS).engine_id, *servers})


def exposure(engine_id: str, no_sandbox: str) -> str:
    """Return why a source must not run here unless `--unsafe-local` is given; empty if it may.

    Args:
        engine_id: hash of the source.
        no_sandbox: why there is no sandbox; empty if there is one.
    """
    if not no_sandbox or engine_id in shipped_engines():
        return ""
    return (
        "its source was changed by an agent, and there is no sandbox to run it in: "
        f"{no_sandbox}; --unsafe-local runs it all the same"
    )
