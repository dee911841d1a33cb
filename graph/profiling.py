"""One variant's profile outside a run, for `slipstream profile`."""

from collections.abc import Callable

from slipstream.evaluation.challenge import load_challenge
from slipstream.evaluation.hardware import bandwidth_of
from slipstream.evaluation.home import data_dir
from slipstream.evaluation.profiling import Profile
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import VariantStore, seed_tree
from slipstream.memory.store import Memory

from .apart import bench_apart
from .lineage import tree_of


def profile_variant(
    memory: Memory,
    variant: str,
    challenge_name: str,
    say: Callable[[str], None],
    *,
    settings: dict[str, str] | None = None,
    unsafe_local: bool = False,
) -> Profile:
    """Profile a variant on one prompt of a challenge's workload.

    Args:
        variant: its name, or "seed" for the shipped engine.
        settings: levers to pull on the shipped engine, with "seed" only.
        unsafe_local: run changed source even where there is no sandbox.

    Raises:
        SlipstreamError: unknown variant or challenge, or an engine that doesn't run.
    """
    challenge = load_challenge(challenge_name)
    store = VariantStore(data_dir() / "variants")
    if variant == "seed":
        tree = seed_tree({**SEED_SETTINGS, **(settings or {})})
        store.add(tree)
    else:
        tree = tree_of(memory, store, memory.variant(variant).id)
    say(f"measuring how fast the {challenge.device} reads, then {tree.id}")
    bandwidth = bandwidth_of(challenge.device)
    with bench_apart(
        f"profile {variant}", challenge, store, say, unsafe_local=unsafe_local
    ) as bench:
        return bench.evaluator.profile(tree.id, bandwidth)
