"""The catalogue agrees with the engine, and its arithmetic with the sizes."""

import re

import pytest

from slipstream.kernels.census import LayerShape, ModelShape, bytes_per_token
from slipstream.kernels.engine.levers import CHOICES, Levers
from slipstream.kernels.fit import effective, moot, refusal
from slipstream.kernels.levers import CATALOGUE, SEED_SETTINGS, Machine

SMOLLM2 = ModelShape(576, 1536, 30, 9, 3, 64, 49152, "llama")
LAPTOP = Machine("cpu", 2, has_compiler=True)
GPU = Machine("cuda", 16, has_compiler=True)


def test_catalogue_and_engine_have_the_same_levers() -> None:
    assert {name: set(lever.values) for name, lever in CATALOGUE.items()} == {
        name: set(values) for name, values in CHOICES.items()
    }
    assert {name: getattr(Levers(), name) for name in CHOICES} == SEED_SETTINGS


@pytest.mark.parametrize("lever", CATALOGUE.values(), ids=lambda lever: lever.name)
def test_every_lever_says_what_it_needs_and_leaves(lever: object) -> None:
    lever = CATALOGUE[lever.name]  # type: ignore[attr-defined]
    assert lever.needs
    assert lever.summary
    for value in lever.values:
        assert 4e7 < lever.bytes_left(SMOLLM2, SEED_SETTINGS, value) < 6e8


def test_seed_reads_every_weight_once_in_bf16() -> None:
    census = bytes_per_token(SMOLLM2, SEED_SETTINGS, context=0)
    assert census["head"] == 49152 * 576 * 2
    layers = sum(census.values()) - census["head"]
    assert layers == 30 * 2 * (576 * (576 + 2 * 192) + 576 * 576 + 3 * 576 * 1536)


def test_int4_bytes_count_scales_and_zeros() -> None:
    dense = bytes_per_token(SMOLLM2, SEED_SETTINGS, context=0)["down"]
    int4 = bytes_per_token(SMOLLM2, {**SEED_SETTINGS, "weights": "int4-g32"}, context=0)["down"]
    assert int4 / dense == pytest.approx((0.5 + 4 / 32) / 2)


@pytest.mark.parametrize(
    ("settings", "machine", "reason"),
    [
        ({"weights": "int4-g128"}, LAPTOP, "128 does not divide qkv's 576 columns"),
        ({"head": "int4-g128"}, LAPTOP, "128 does not divide head's 576 columns"),
        ({"threads": "8"}, LAPTOP, "this machine has 2 cores"),
        ({"compile": "layer"}, Machine("cpu", 2, has_compiler=False), "needs a compiler"),
        ({"step": "native", "dtype": "float32"}, LAPTOP, "step=native: needs dtype=bfloat16"),
        ({"step": "native"}, Machine("cpu", 2, has_compiler=False), "needs a compiler"),
        ({"step": "graph"}, LAPTOP, "step=graph: needs a GPU"),
        ({"weights": "int8"}, GPU, "weights=int8: on a GPU only with step=native or graph"),
        ({"step": "graph", "activations": "int8"}, GPU, "activations=int8: on CPUs only"),
        ({"step": "graph", "weights": "int4-g64"}, GPU, "needs a multiple of 128 columns, .* 576"),
        ({"kv": "int8"}, LAPTOP, "kv=int8: on GPUs only"),
        ({"cache": "paged"}, LAPTOP, "cache=paged: on GPUs only"),
        ({"turbo": "on"}, LAPTOP, "lever 'turbo': not one of"),
        ({"cache": "huge"}, LAPTOP, "cache=huge: not one of growing, static"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(
    settings: dict[str, str], machine: Machine, reason: str
) -> None:
    found = refusal(SMOLLM2, settings, machine)
    assert found is not None
    assert re.search(reason, found)


def test_what_can_work_is_not_refused() -> None:
    settings = {**SEED_SETTINGS, "weights": "int4-g64", "head": "int8", "compile": "layer"}
    assert refusal(SMOLLM2, settings, LAPTOP) is None


def test_levers_that_do_nothing_beside_others_count_as_the_seeds() -> None:
    fused = {**SEED_SETTINGS, "step": "native", "norm": "layer-norm", "activations": "int8"}
    assert moot(fused) >= {"norm", "fuse", "cache", "attention", "compile", "activations"}
    assert effective(fused) == {**SEED_SETTINGS, "step": "native", "cache": "static"}
    quantised = {**fused, "weights": "int8"}
    assert effective(quantised)["activations"] == "int8"
    assert effective({**SEED_SETTINGS, "activations": "int8"}) == SEED_SETTINGS
    assert effective({"norm": "layer-norm"})["norm"] == "layer-norm"
    assert effective({**fused, "cache": "paged"})["cache"] == "paged"
    assert "cache" not in moot({**fused, "cache": "paged"})


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (ModelShape(576, 1536, 2, 9, 3, 96, 512, "llama"), "3 query heads of 96"),
        (ModelShape(512, 1024, 2, 10, 2, 64, 512, "llama"), "5 query heads of 64"),
        (ModelShape(5120, 1024, 2, 4, 2, 64, 512, "llama"), "hidden_size of at most 4096"),
    ],
)
def test_sizes_that_no_gpu_kernel_was_made_for_are_refused(shape: ModelShape, reason: str) -> None:
    found = refusal(shape, {"step": "graph"}, GPU)
    assert found is not None
    assert reason in found


def test_gemma4_on_a_gpu_is_not_refused() -> None:
    layers = (LayerShape(256, 2, 10240, 512), LayerShape(512, 2, 10240, None, shares_cache=True))
    shape = ModelShape(2560, 10240, 2, 8, 2, 256, 262144, "gemma4_text", layers, 256)
    for weights in ("dense", "int8", "int4-g128"):
        assert refusal(shape, {"step": "graph", "weights": weights}, GPU) is None
    assert refusal(shape, {"step": "native"}, LAPTOP) is not None
