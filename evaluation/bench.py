"""A bench: where measurements happen. Opening the local one needs nothing but a challenge."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from slipstream.kernels.census import ModelShape, read_shape

from . import sandbox
from .challenge import Challenge
from .evaluator import Evaluator, LocalEvaluator
from .home import make_dir
from .models import fetch_model
from .prompts import Split, fresh_prompts, load_prompts


@dataclass(frozen=True)
class Bench:
    """Where measurements happen, and on what.

    Attributes:
        num_documents: scored documents per split.
    """

    evaluator: Evaluator
    shape: ModelShape
    num_documents: int


@contextmanager
def open_bench(
    challenge: Challenge,
    tree_of: Callable[[str], Path],
    folder: Path,
    *,
    seed: int,
    salt: str = "",
    unsafe_local: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[Bench]:
    """Fetch the model, draw the prompts, choose the sandbox; stop all engines in the end.

    Args:
        tree_of: where the tree of a variant lies.
        folder: for this seed's prompts and the baselines' trees; no engine sees it.
        seed: of everything that is drawn; secret until the result is out.
        salt: another one draws other held-out documents.
        unsafe_local: run changed source even where there is no sandbox.

    Raises:
        SlipstreamError: no such model, or one without a tokenizer.
    """
    model_dir = fetch_model(challenge.model, say)
    shape, workload = read_shape(model_dir), challenge.workload
    prompts = load_prompts(workload, model_dir, shape.vocab_size)
    evaluator = LocalEvaluator(
        challenge,
        model_dir,
        prompts,
        fresh_prompts(workload, model_dir, shape.vocab_size, seed, folder),
        tree_of,
        vocab_size=shape.vocab_size,
        seed=seed,
        scratch=make_dir(folder / "baselines"),
        sandbox=sandbox.choose(gpu=challenge.device == "cuda"),
        unsafe_local=unsafe_local,
        salt=salt,
        say=say,
    )
    per_split = sum(prompt.split is Split.PUBLIC for prompt in prompts)
    try:
        yield Bench(evaluator, shape, min(challenge.quality.documents, per_split))
    finally:
        evaluator.close()
