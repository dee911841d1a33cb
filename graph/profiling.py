"""One variant's profile outside a run, for `slipstream profile`."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from slipstream.evaluation import sandbox
from slipstream.evaluation.challenge import load_challenge
from slipstream.evaluation.child import ChildEngine
from slipstream.evaluation.errors import EngineError, SlipstreamError
from slipstream.evaluation.hardware import bandwidth_of
from slipstream.evaluation.home import data_dir
from slipstream.evaluation.models import fetch_model
from slipstream.evaluation.profiling import Profile, profile
from slipstream.evaluation.prompts import fresh_prompts
from slipstream.evaluation.sandbox import NoSandbox, problem
from slipstream.evaluation.trust import exposure
from slipstream.kernels.census import bytes_per_token, read_shape
from slipstream.kernels.fit import effective
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import VariantStore, seed_tree
from slipstream.memory.store import Memory

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
    gpu = challenge.device == "cuda"
    chosen = sandbox.choose(gpu=gpu)
    no_sandbox = (problem() or "none was asked for") if isinstance(chosen, NoSandbox) else ""
    if not unsafe_local and (reason := exposure(tree.engine_id, no_sandbox)):
        raise SlipstreamError(f"profile {variant}: {reason}")
    model_dir, workload = fetch_model(challenge.model, say), challenge.workload
    shape = read_shape(model_dir)
    with tempfile.TemporaryDirectory() as scratch:
        prompt = fresh_prompts(workload, model_dir, shape.vocab_size, 0, Path(scratch))[0].tokens
    context = len(prompt) + workload.num_tokens // 2
    say(f"measuring bandwidth, then {tree.id}")
    bandwidth = bandwidth_of(challenge.device)
    try:
        with ChildEngine(
            store.path(tree.id), model_dir, max_context=workload.max_context, sandbox=chosen
        ) as engine:
            census = bytes_per_token(shape, effective(tree.settings), context=context)
            return profile(engine, list(prompt), workload.num_tokens, census, bandwidth)
    except EngineError as error:
        raise SlipstreamError(f"profile {variant}: {error}") from error
