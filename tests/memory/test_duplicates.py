"""What was refuted is refused with its evidence, until its condition for another try holds."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from memories import Teller, make_run

from slipstream.evaluation.acceptance import Cause, Verdict
from slipstream.evaluation.challenge import Tier
from slipstream.memory.duplicates import Idea, find_refutation
from slipstream.memory.store import Memory, open_memory

IDEA = Idea(
    lever="weights",
    target="weights=int8",
    mechanism="reads 135 MB a token instead of 270",
    challenge="c",
    machine="m",
    tier=Tier.NEAR_LOSSLESS,
    engine="engine",
    champion_tps=55.0,
)
EDIT = replace(
    IDEA,
    lever="edit",
    target="engine/attention.py",
    mechanism="Skip the softmax over masked positions; that saves 12 % of a layer",
)


@pytest.fixture
def memory(url: str) -> Iterator[Memory]:
    with open_memory(url) as opened:
        yield opened


def test_same_change_without_a_gain_is_refused_until_the_champion_is_much_faster(
    memory: Memory,
) -> None:
    name = Teller(memory).tell("a", Verdict.REJECTED, 0.0, tps=50.0, reason="no gain: 0 %")
    found = find_refutation(memory, IDEA)
    assert found is not None
    assert (found.experiment, found.verdict, found.reason) == (
        name,
        Verdict.REJECTED,
        "no gain: 0 %",
    )
    assert find_refutation(memory, replace(IDEA, champion_tps=74.0)) is not None
    assert find_refutation(memory, replace(IDEA, champion_tps=76.0)) is None
    assert find_refutation(memory, replace(IDEA, target="weights=int4-g32")) is None
    assert find_refutation(memory, replace(IDEA, challenge="d")) is None
    assert find_refutation(memory, replace(IDEA, machine="n")) is None


def test_lost_quality_is_refused_until_the_tier_is_looser(memory: Memory) -> None:
    Teller(memory).tell("a", Verdict.REJECTED, 0.3, cause=Cause.QUALITY)
    assert find_refutation(memory, replace(IDEA, champion_tps=1e9)) is not None
    assert find_refutation(memory, replace(IDEA, tier=Tier.EXACT)) is not None
    assert find_refutation(memory, replace(IDEA, tier=Tier.CHALLENGE)) is None


def test_what_failed_is_refused_until_the_source_is_another(memory: Memory) -> None:
    Teller(memory).tell("a", Verdict.FAILED)
    assert find_refutation(memory, IDEA) is not None
    assert find_refutation(memory, replace(IDEA, engine="rewritten")) is None


def test_what_had_no_sandbox_is_not_refuted(memory: Memory) -> None:
    Teller(memory).tell("a", Verdict.FAILED, cause=Cause.EXPOSED)
    assert find_refutation(memory, IDEA) is None


def test_what_is_undecided_or_contested_may_be_tried(memory: Memory) -> None:
    teller = Teller(memory)
    teller.tell("a", Verdict.INCONCLUSIVE, 0.1)
    assert find_refutation(memory, IDEA) is None
    teller.tell("b", Verdict.REJECTED, 0.0)
    assert find_refutation(memory, IDEA) is not None
    teller.tell("c", Verdict.KEPT, 0.2)
    assert find_refutation(memory, IDEA) is None


@pytest.mark.parametrize(
    ("mechanism", "refused"),
    [
        ("skip the softmax over masked positions: that saves 9 % of a layer", True),
        ("Skipping softmax on masked positions saves 12% of a layer", True),
        ("keep keys transposed, so that the product reads them in one stride", False),
    ],
)
def test_edits_are_compared_by_their_words(memory: Memory, mechanism: str, refused: bool) -> None:
    Teller(memory).tell(
        "a", Verdict.REJECTED, 0.0, lever="edit", value="x", target=EDIT.target, mechanism=mechanism
    )
    assert (find_refutation(memory, EDIT) is not None) == refused
    assert find_refutation(memory, replace(EDIT, target="engine/cache.py")) is None


def test_another_run_of_the_same_place_counts(memory: Memory) -> None:
    Teller(memory, make_run("r7")).tell("a", Verdict.REJECTED, 0.0)
    found = find_refutation(memory, IDEA)
    assert found is not None
    assert found.experiment.startswith("r7-")
