"""A profile: the engine's own account, checked for form, beside the parent's clock."""

import math
from pathlib import Path
from typing import Any

import pytest

from slipstream.evaluation.child import ChildEngine
from slipstream.evaluation.errors import InvalidOutputError
from slipstream.evaluation.profiling import profile
from slipstream.evaluation.protocol import check_profile
from slipstream.evaluation.sandbox import choose
from slipstream.kernels.census import bytes_per_token, read_shape
from slipstream.kernels.variants import VariantStore, seed_tree

PROMPT = list(range(20, 50))


@pytest.mark.timed
@pytest.mark.parametrize("step", ["eager", "native"])
def test_components_add_up_to_a_token(step: str, tiny_llama: Path, tmp_path: Path) -> None:
    settings = {"step": step, "cache": "static"}
    tree = VariantStore(tmp_path).add(seed_tree(settings))
    census = bytes_per_token(read_shape(tiny_llama), settings, context=100)
    with ChildEngine(tree, tiny_llama, max_context=512, sandbox=choose()) as engine:
        found = profile(engine, PROMPT, 200, census, 2000.0)
    names = {row.name for row in found.components}
    if step == "native":
        assert names >= {"qkv", "attention", "attention-out", "gate-up", "down", "head", "norms"}
        read = sum(row.read_bytes for row in found.components)
        assert read == sum(census.values()) == found.read_bytes
    else:
        assert "step" in names
    assert sum(row.time_s for row in found.components) == pytest.approx(found.token_s, rel=0.6)
    assert 0 < found.roofline < 1
    times = [row.time_s for row in found.components if row.name != "between them"]
    assert times == sorted(times, reverse=True)
    for row in found.components:
        if row.roofline is not None:
            assert row.roofline == pytest.approx(row.read_bytes / 2e12 / row.time_s)


@pytest.mark.parametrize(
    "times",
    [
        {},
        [],
        {"qkv": "1"},
        {"qkv": 1},
        {"qkv": math.nan},
        {"qkv": -0.1},
        {"qkv": math.inf},
        {"a\x1b[31m": 0.1},
        {"x" * 41: 0.1},
        {str(i): 0.1 for i in range(65)},
        {3: 0.1},
    ],
)
def test_what_is_no_profile_is_refused(times: Any) -> None:
    with pytest.raises(InvalidOutputError):
        check_profile({"profile": times})


def test_a_profile_is_taken_as_it_is() -> None:
    assert check_profile({"profile": {"qkv": 0.25}}) == {"qkv": 0.25}
