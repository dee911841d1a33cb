"""One race outside a run: a variant against another engine, for `slipstream bench`."""

from collections.abc import Callable

from slipstream.evaluation.baselines import is_baseline
from slipstream.evaluation.challenge import load_challenge
from slipstream.evaluation.conditions import disturbance
from slipstream.evaluation.home import data_dir
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.statistics import Estimate, estimate, geometric_mean
from slipstream.kernels.variants import VariantStore
from slipstream.memory.store import Memory

from .apart import bench_apart
from .lineage import find_tree


def race(
    memory: Memory,
    variant: str,
    against: str,
    challenge_name: str,
    num_pairs: int,
    say: Callable[[str], None],
    *,
    unsafe_local: bool = False,
) -> tuple[Estimate, float, float]:
    """Measure interleaved pairs on held-out prompts.

    Args:
        variant: a variant's name, "seed" for the shipped engine without levers, or the name of a
            served engine that ships.
        against: another variant, or a baseline's name.
        unsafe_local: run changed source even where there is no sandbox.

    Returns:
        The gain, and both engines' output tokens per second (geometric means).

    Raises:
        SlipstreamError: unknown variant or challenge, or an engine that doesn't run.
    """
    challenge = load_challenge(challenge_name)
    store = VariantStore(data_dir() / "variants")
    names = [
        name if is_baseline(name) else find_tree(memory, store, name).id
        for name in (variant, against)
    ]
    pairs: list[Pair] = []
    what = f"bench {variant} against {against}"
    with bench_apart(what, challenge, store, say, unsafe_local=unsafe_local) as bench:
        todo = dict.fromkeys(range(num_pairs), 0)
        for pair in bench.evaluator.pairs(names[0], names[1], Stage.CONFIRM, todo):
            if pair.void:
                say(f"void: {pair.void}")
                continue
            pairs.append(pair)
            note = disturbance(pair.conditions, challenge.acceptance.max_disturbance)
            figures = f"{pair.tps:.1f} against {pair.tps_rival:.1f} {note}"
            say(f"pair {len(pairs)}/{num_pairs}: {figures}".rstrip())
    return (
        estimate([pair.log_ratio for pair in pairs]),
        geometric_mean([pair.tps for pair in pairs]),
        geometric_mean([pair.tps_rival for pair in pairs]),
    )
