"""The trusted reference: its text is its own, repeatable, and an exact engine scores perfectly."""

from pathlib import Path

import numpy as np
import pytest

from slipstream.evaluation.challenge import Quality, Workload
from slipstream.evaluation.child import ChildEngine
from slipstream.evaluation.gates import report
from slipstream.evaluation.prompts import load_prompts
from slipstream.evaluation.reference import Reference, score
from slipstream.kernels.variants import VariantStore, seed_tree

QUALITY = Quality(documents=4, continuation_tokens=12)


@pytest.fixture
def reference(home: Path, tiny_llama: Path) -> Reference:
    return Reference(tiny_llama, QUALITY, max_context=128)


def test_documents_are_made_once_and_read_again(reference: Reference, tiny_llama: Path) -> None:
    prompts = load_prompts(
        Workload(prompts="random-ids", num_prompts=4, prompt_tokens=6), tiny_llama, 512
    )[:4]
    said: list[tuple[int, int]] = []
    made = reference.documents(prompts, lambda done, total: said.append((done, total)))
    assert said[-1] == (4, 4)
    again = reference.documents(prompts, lambda done, total: pytest.fail("made twice"))
    assert made == again
    assert [len(document.tokens) for document in made] == [12] * 4
    assert made[0].logits().shape == (12, 512)
    assert len({document.tokens for document in made}) == 4


def test_exact_engine_scores_perfectly_and_a_coarse_one_does_not(
    reference: Reference, tiny_llama: Path, tmp_path: Path
) -> None:
    prompts = load_prompts(
        Workload(prompts="random-ids", num_prompts=4, prompt_tokens=6), tiny_llama, 512
    )[:4]
    documents = reference.documents(prompts)
    store = VariantStore(tmp_path / "variants")
    kls = {}
    for weights in ("dense", "int4-g64"):
        tree = store.add(seed_tree({"dtype": "float32", "weights": weights}))
        with ChildEngine(tree, tiny_llama, max_context=128) as engine:
            quality = report([score(engine, document) for document in documents])
        kls[weights] = quality.kl
        if weights == "dense":
            assert quality.top1 == 1.0
            assert abs(quality.ppl_rise) < 1e-4
    assert kls["dense"] < 1e-6
    assert kls["int4-g64"] > 100 * kls["dense"]


def test_sampling_follows_the_reference_distribution() -> None:
    """Gumbel-max draws token i with its softmax probability."""
    rng = np.random.default_rng(0)
    logits = np.log(np.array([0.7, 0.2, 0.1]))
    drawn = [(logits + rng.gumbel(size=3)).argmax() for _ in range(20_000)]
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, [0.7, 0.2, 0.1], atol=0.01)
