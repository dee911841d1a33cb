"""Bytes per token, against counts by hand and against what the challenge counted."""

import json
from pathlib import Path

import pytest

from slipstream.evaluation.models import fetch_model
from slipstream.kernels.census import ModelShape, bytes_per_token, read_shape
from slipstream.kernels.fit import refusal
from slipstream.kernels.levers import SEED_SETTINGS, Machine

SMOLLM2 = ModelShape(576, 1536, 30, 9, 3, 64, 49152)
STATIC = {**SEED_SETTINGS, "cache": "static"}


@pytest.mark.parametrize(
    ("weights", "head", "gigabytes"),
    [
        ("dense", "dense", 9.33),
        ("int8", "int8", 4.69),
        ("int4-g32", "dense", 3.62),
        ("int4-g128", "int4-g128", 2.44),
    ],
)
def test_e4b_reads_what_the_challenge_counted(
    weights: str, head: str, gigabytes: float, home: Path
) -> None:
    shape = read_shape(fetch_model("random:gemma-4-E4B"))
    census = bytes_per_token(shape, {**STATIC, "weights": weights, "head": head}, context=512)
    total = sum(census.values())
    # They counted symmetric groups; this engine holds a zero beside each group's scale.
    for scheme, count in ((weights, _multiplied(shape)), (head, 262_144 * 2560)):
        if scheme.startswith("int4-g"):
            total -= 2 * count / int(scheme.removeprefix("int4-g"))
    assert total / 1e9 == pytest.approx(gigabytes, rel=0.01)


def _multiplied(shape: ModelShape) -> int:
    return sum(m.outputs * m.inputs * m.copies for m in shape.matrices)


def test_e4b_multiplies_the_challenge_s_number_of_weights(home: Path) -> None:
    shape = read_shape(fetch_model("random:gemma-4-E4B"))
    census = bytes_per_token(shape, STATIC, context=0)
    billions = {name: read / 2e9 for name, read in census.items()}
    assert billions["gate-up"] + billions["down"] == pytest.approx(3.30, abs=0.005)
    assert billions["head"] == pytest.approx(0.67, abs=0.005)
    assert billions["qkv"] == pytest.approx(0.33, abs=0.005)
    assert billions["attention-out"] == pytest.approx(0.26, abs=0.005)
    assert billions["per-layer"] == pytest.approx(0.08, abs=0.005)


def test_e2b_is_counted_by_hand(home: Path) -> None:
    """35 layers, every fifth global, 20 shared and double-wide, one key/value head."""
    census = bytes_per_token(read_shape(fetch_model("random:gemma-4-E2B")), STATIC, context=1000)
    queries = 28 * 8 * 256 + 7 * 8 * 512
    keys_values = 12 * 2 * 256 + 3 * 2 * 512  # the first 15 layers
    feed_forward = 15 * 6144 + 20 * 12_288
    assert census == {
        "qkv": 2 * 1536 * (queries + keys_values),
        "attention-out": 2 * 1536 * queries,
        "gate-up": 2 * 1536 * 2 * feed_forward,
        "down": 2 * 1536 * feed_forward,
        "per-layer": 2 * 1536 * 3 * 35 * 256,
        "head": 2 * 1536 * 262_144,
        "kv-cache": 2 * (28 * 2 * 256 * 512 + 7 * 2 * 512 * 1000),  # sliding ones see 512
    }


def test_int8_keys_and_values_are_a_byte_and_a_share_of_a_scale() -> None:
    """Heads of 64: four bytes of scale for each. Eager layers write them out and read that."""
    fused, eager = {**STATIC, "step": "graph"}, STATIC
    for settings, more in ((fused, 0), (eager, 4)):
        dense, int8 = (
            bytes_per_token(SMOLLM2, {**settings, "kv": kind})["kv-cache"]
            for kind in ("dense", "int8")
        )
        assert int8 == pytest.approx(dense / 2 * (1 + 4 / 64 + more))


def test_pages_are_put_together_by_eager_layers_only() -> None:
    read = {
        (step, kind): bytes_per_token(SMOLLM2, {**STATIC, "step": step, "cache": kind})["kv-cache"]
        for step in ("eager", "graph")
        for kind in ("static", "paged", "growing")
    }
    assert read["eager", "paged"] == read["eager", "growing"] > read["eager", "static"]
    assert read["graph", "paged"] == read["graph", "static"]


def test_a_growing_cache_is_copied_where_it_lies(home: Path) -> None:
    shape = read_shape(fetch_model("random:gemma-4-E2B"))
    static, growing = (
        bytes_per_token(shape, {**STATIC, "cache": kind}, context=1000)["kv-cache"]
        for kind in ("static", "growing")
    )
    assert growing - static == 2 * 2 * 1000 * (12 * 2 * 256 + 3 * 2 * 512)
    uniform = [
        bytes_per_token(SMOLLM2, {**STATIC, "cache": kind})["kv-cache"]
        for kind in ("static", "growing")
    ]
    assert uniform == [2 * 30 * 2 * 3 * 64 * 256, 3 * 2 * 30 * 2 * 3 * 64 * 256]


def test_older_and_multimodal_configurations_count_the_same(home: Path, tmp_path: Path) -> None:
    folder = fetch_model("random:gemma-4-E4B")
    raw = json.loads((folder / "config.json").read_text())
    del raw["per_layer_config"]
    whole = {"model_type": "gemma4", "text_config": {**raw, "global_head_dim": 512}}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert read_shape(tmp_path) == read_shape(folder)


def test_groups_have_to_divide_every_matrix(tiny_gemma4: Path) -> None:
    """The narrowest of the tiny Gemma 4's matrices takes its per-layer embedding of 32."""
    shape, machine = read_shape(tiny_gemma4), Machine("cpu", 2, has_compiler=True)
    found = refusal(shape, {**SEED_SETTINGS, "weights": "int4-g64"}, machine)
    assert found == "weights=int4-g64: 64 does not divide per-layer's 32 columns"
    assert refusal(shape, {**SEED_SETTINGS, "weights": "int4-g32"}, machine) is None
