"""Audits: what the reference and the engine itself say of timed tokens."""

import numpy as np
import pytest
from numpy.typing import NDArray

from slipstream.evaluation.audits import (
    Audit,
    audit_block,
    audit_refusal,
    choose_blocks,
    contradiction,
    report_audits,
)
from slipstream.evaluation.calibration import LogitNoise
from slipstream.evaluation.challenge import Tier
from slipstream.evaluation.pairs import Stage

NOISE = LogitNoise(reference=1e-4, rounding=0.1, floor=0.2, num_positions=100)


def logits(*best: int, lead: float = 5.0) -> NDArray[np.float32]:
    """Rows of 8 logits whose arg-max is `best`, by `lead`."""
    rows = np.zeros((len(best), 8), np.float32)
    rows[np.arange(len(best)), list(best)] = lead
    return rows


def audit(
    tokens: list[int], replayed: NDArray[np.float32], reference: NDArray[np.float32]
) -> Audit:
    return audit_block(Stage.TEST, 3, 1, tokens, replayed, reference, NOISE)


def test_same_picks_everywhere() -> None:
    found = audit([1, 2, 3], logits(1, 2, 3), logits(1, 2, 3))
    assert (found.matches, found.contradictions, found.regret) == (3, 0, 0.0)
    assert found.first_divergence is None
    assert found.kl == pytest.approx(0.0)


def test_regret_is_what_the_reference_would_have_gained() -> None:
    found = audit([1, 7, 3], logits(1, 7, 3), logits(1, 2, 3))
    assert found.first_divergence == 1
    assert found.matches == 2
    assert found.regret == pytest.approx(5.0)
    assert found.worst_regret == pytest.approx(5.0)
    assert found.contradictions == 0  # bad, but true to itself
    assert found.kl > 1


def test_other_picks_in_the_replay_are_contradictions() -> None:
    found = audit([1, 7, 3], logits(1, 2, 3), logits(1, 2, 3))
    assert found.contradictions == 1


def test_near_ties_are_neither() -> None:
    close = logits(1, lead=0.05)
    found = audit([0], close, close)
    assert found.contradictions == 0
    assert found.matches == 1
    assert found.first_divergence == 0  # named all the same


def test_report_bounds_regret_over_blocks() -> None:
    good = Audit(Stage.TEST, 0, 0, 100, 100, None, 0.0, 0.0, 0, 0.0)
    bad = Audit(Stage.TEST, 1, 0, 100, 90, 4, 3.0, 1.0, 0, 2.0)
    found = report_audits([good, bad, good, good])
    assert found.regret == pytest.approx(3 / 400)
    assert found.match_rate == pytest.approx(0.975)
    assert found.regret_high > 0.01
    assert "near-lossless allows 0.01" in str(audit_refusal(found, Tier.NEAR_LOSSLESS))
    assert audit_refusal(found, Tier.CHALLENGE) is None
    assert "10 of 400" in str(audit_refusal(found, Tier.EXACT))
    assert contradiction(found) is None


def test_blocks_are_drawn_without_replacement_and_can_not_be_foreseen() -> None:
    drawn = choose_blocks(1, "v", Stage.TEST, 8, 6)
    assert len(set(drawn)) == 6
    assert all(0 <= position < 8 and block in (0, 1) for position, block in drawn)
    assert drawn == choose_blocks(1, "v", Stage.TEST, 8, 6)
    assert drawn != choose_blocks(2, "v", Stage.TEST, 8, 6)
    assert len(choose_blocks(1, "v", Stage.TEST, 2, 99)) == 4
