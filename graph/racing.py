"""One race outside a run: a variant against another engine, for `slipstream bench`."""

import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from slipstream.evaluation import sandbox
from slipstream.evaluation.challenge import load_challenge
from slipstream.evaluation.errors import EngineError, SlipstreamError
from slipstream.evaluation.evaluator import LocalEvaluator
from slipstream.evaluation.home import data_dir
from slipstream.evaluation.models import fetch_model
from slipstream.evaluation.pairs import Stage
from slipstream.evaluation.prompts import fresh_prompts, load_prompts
from slipstream.evaluation.statistics import Estimate, estimate, geometric_mean
from slipstream.kernels.census import read_shape
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import VariantStore, seed_tree
from slipstream.memory.store import Memory


def race(
    memory: Memory,
    variant: str,
    against: str,
    challenge_name: str,
    num_pairs: int,
    say: Callable[[str], None],
) -> tuple[Estimate, float, float]:
    """Measure interleaved pairs on held-out prompts.

    Args:
        variant: a variant's name, or "seed" for the shipped engine without levers.
        against: another variant, or a baseline's name.

    Returns:
        The gain, and both engines' output tokens per second (geometric means).

    Raises:
        SlipstreamError: unknown variant or challenge, or an engine that doesn't run.
    """
    challenge = load_challenge(challenge_name)
    store = VariantStore(data_dir() / "variants")
    shipped = seed_tree(SEED_SETTINGS)
    store.add(shipped)
    names = [
        shipped.id if name == "seed" else name if _is_baseline(name) else memory.variant(name).id
        for name in (variant, against)
    ]
    model_dir = fetch_model(challenge.model, say)
    workload, seed = challenge.workload, secrets.randbelow(2**31)
    vocab_size = read_shape(model_dir).vocab_size
    prompts = load_prompts(workload, model_dir, vocab_size)
    with tempfile.TemporaryDirectory() as scratch:
        evaluator = LocalEvaluator(
            challenge,
            model_dir,
            prompts,
            fresh_prompts(workload, model_dir, vocab_size, seed, Path(scratch)),
            store.path,
            vocab_size=vocab_size,
            seed=seed,
            scratch=Path(scratch),
            sandbox=sandbox.choose(gpu=challenge.device == "cuda"),
        )
        pairs = []
        try:
            for pair in evaluator.pairs(names[0], names[1], Stage.CONFIRM, range(num_pairs)):
                if pair.void:
                    say(f"void: {pair.void}")
                    continue
                pairs.append(pair)
                say(f"pair {len(pairs)}/{num_pairs}: {pair.tps:.1f} against {pair.tps_rival:.1f}")
        except EngineError as error:
            raise SlipstreamError(f"bench {variant} against {against}: {error}") from error
        finally:
            evaluator.close()
    return (
        estimate([pair.log_ratio for pair in pairs]),
        geometric_mean([pair.tps for pair in pairs]),
        geometric_mean([pair.tps_rival for pair in pairs]),
    )


def _is_baseline(name: str) -> bool:
    return name in ("transformers-bf16", "transformers-fp32")
