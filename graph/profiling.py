"""One variant's profile outside a run, for `slipstream profile`."""

from collections.abc import Callable

from slipstream.evaluation.challenge import load_challenge
from slipstream.evaluation.hardware import bandwidth_of
from slipstream.evaluation.home import data_dir
from slipstream.evaluation.profiling import Profile
from slipstream.kernels.variants import VariantStore
from slipstream.memory.store import Memory

from .apart import bench_apart
from .lineage import find_tree


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
    tree = find_tree(memory, store, variant, settings)
    say(f"measuring how fast the {challenge.device} reads, then {tree.id}")
    bandwidth = bandwidth_of(challenge.device)
    with bench_apart(
        f"profile {variant}", challenge, store, say, unsafe_local=unsafe_local
    ) as bench:
        return bench.evaluator.profile(tree.id, bandwidth)
