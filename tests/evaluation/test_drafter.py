"""A challenge's drafter: beside the model's files, in the sandbox too, its account checked."""

import math
from pathlib import Path
from typing import Any

import pytest
from tiny_challenge import TINY

from slipstream.evaluation.bench import open_bench
from slipstream.evaluation.challenge import Challenge, parse_challenge
from slipstream.evaluation.child import ChildEngine
from slipstream.evaluation.errors import EngineFailedError, InvalidOutputError, SlipstreamError
from slipstream.evaluation.models import fetch_model, with_drafter
from slipstream.evaluation.protocol import check_acceptance
from slipstream.evaluation.sandbox import choose
from slipstream.kernels.census import read_shape
from slipstream.kernels.fit import refusal
from slipstream.kernels.levers import Machine
from slipstream.kernels.variants import VariantStore, seed_tree

DRAFTED = {"draft": "model-4", "dtype": "float32", "cache": "static"}
PROMPT = list(range(20, 50))


def challenge(**fields: str) -> Challenge:
    lines = "\n".join(f'{name} = "{value}"' for name, value in fields.items())
    return parse_challenge(f"{lines}\n{TINY}", source="tiny")


def test_an_engine_in_the_sandbox_finds_it(home: Path, tmp_path: Path) -> None:
    """Through links, whose targets the sandbox shows instead."""
    model = fetch_model("random:tiny-llama")
    both = with_drafter(model, "random:tiny-llama")
    assert both == with_drafter(model, "random:tiny-llama")
    assert (both / "drafter" / "config.json").is_symlink()
    store = VariantStore(tmp_path)
    plain, drafted = store.add(seed_tree({"dtype": "float32"})), store.add(seed_tree(DRAFTED))
    with ChildEngine(plain, model, max_context=512, sandbox=choose()) as engine:
        expected = engine.generate(PROMPT, 60).tokens
        assert engine.acceptance() == ()
    with ChildEngine(drafted, both, max_context=512, sandbox=choose()) as engine:
        assert engine.generate(PROMPT, 60).tokens == expected
        shares = engine.acceptance()
    assert len(shares) == 4
    assert min(shares) > 0.9  # it guesses for itself
    with pytest.raises(EngineFailedError, match="the model's folder has no drafter/"):
        ChildEngine(drafted, model, max_context=512, sandbox=choose())


def test_a_challenge_names_it(home: Path, tmp_path: Path) -> None:
    """Variants see it, the levers that need it are possible, and a profile has its figures."""
    store = VariantStore(tmp_path / "variants")
    tree = seed_tree(DRAFTED)
    store.add(tree)
    rules = challenge(drafter="random:tiny-llama")
    with open_bench(rules, store.path, tmp_path, seed=1, unsafe_local=True) as bench:
        assert bench.shape.drafter == "model"
        found = bench.evaluator.profile(tree.id, 30.0)
    assert len(found.acceptance) == 4


def test_levers_that_need_one_are_refused_without(tiny_llama: Path, home: Path) -> None:
    here = Machine("cpu", 2, has_compiler=True)
    alone = read_shape(tiny_llama)
    beside = read_shape(with_drafter(tiny_llama, "random:tiny-llama"))
    assert refusal(alone, {"draft": "model-4"}, here) == (
        "draft=model-4: the challenge names no such drafter"
    )
    assert refusal(beside, {"draft": "model-4"}, here) is None
    assert refusal(beside, {"draft": "assistant-4"}, here) is not None


def test_one_that_cannot_be_had_is_an_error(home: Path, tmp_path: Path) -> None:
    rules = challenge(drafter="random:nobody")
    with (
        pytest.raises(SlipstreamError, match="model 'random:nobody': random models are"),
        open_bench(rules, lambda _: tmp_path, tmp_path, seed=1),
    ):
        pass


@pytest.mark.parametrize("shares", [None, {}, [1], [math.nan], [1.5], [-0.1], [0.5] * 65, ["x"]])
def test_what_is_no_acceptance_is_refused(shares: Any) -> None:
    with pytest.raises(InvalidOutputError):
        check_acceptance({"acceptance": shares})
