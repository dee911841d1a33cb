"""Pairs are interleaved, balanced, and the same after a restart."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from slipstream.evaluation.engine import Generation
from slipstream.evaluation.pairs import PairPlan, Stage, measure_pair
from slipstream.evaluation.prompts import Prompt, Split

PROMPTS = [Prompt(f"p{i}", "chat", Split.PUBLIC, (1, 2, i)) for i in range(6)]


class Clockwork:
    """An engine whose blocks take as long as a shared, drifting clock says."""

    vocab_size = 10

    def __init__(self, name: str, cost_s: float, log: list[str]) -> None:
        self.name, self.cost_s, self.log = name, cost_s, log

    def generate(self, prompt: Sequence[int], num_tokens: int) -> Generation:
        self.log.append(self.name)
        drift = 1 + 0.1 * len(self.log)  # the machine gets slower and slower
        return Generation((0,) * num_tokens, self.cost_s * drift)


@pytest.mark.parametrize("index", range(4))
def test_linear_drift_cancels(index: int) -> None:
    log: list[str] = []
    a, b = Clockwork("A", 1.0, log), Clockwork("B", 2.0, log)
    pair = measure_pair(a, b, PairPlan(Stage.TEST, PROMPTS, 1), index, 10)  # type: ignore[arg-type]
    assert "".join(log) == pair.order
    assert pair.order in ("ABBA", "BAAB")
    assert np.exp(pair.log_ratio) == pytest.approx(2.0)


def test_orders_are_balanced_and_prompts_dealt_without_repeats() -> None:
    plan = PairPlan(Stage.CONFIRM, PROMPTS, 3)
    drawn = [plan.at(index) for index in range(12)]
    assert Counter(order for _, order in drawn) == {"ABBA": 6, "BAAB": 6}
    assert set(Counter(prompt.id for prompt, _ in drawn).values()) == {2}


def test_plan_is_the_same_after_a_restart_and_differs_by_stage_and_seed() -> None:
    def draw(stage: Stage, seed: int) -> list[tuple[str, str]]:
        plan = PairPlan(stage, PROMPTS, seed)
        return [(prompt.id, order) for prompt, order in map(plan.at, range(12))]

    assert draw(Stage.TEST, 7) == draw(Stage.TEST, 7)
    assert draw(Stage.TEST, 7) != draw(Stage.TEST, 8)
    assert draw(Stage.TEST, 7) != draw(Stage.SCREEN, 7)
