"""One interleaved pair of timed blocks: A B B A, both engines warm, order drawn at random.

A drift of the machine that is linear over the pair cancels: each engine has the same mean position
in time. Both engines get the same prompt, so its length cancels too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from .engine import Engine
from .prompts import Prompt


class Stage(StrEnum):
    """What a pair was measured for."""

    NOISE = "noise"  # an engine against itself
    BASELINE = "baseline"  # against transformers
    SCREEN = "screen"
    TEST = "test"
    CONFIRM = "confirm"


@dataclass(frozen=True)
class Pair:
    """Speeds of one pair, in output tokens per second, prefill included."""

    stage: Stage
    index: int
    prompt: str
    order: str  # "ABBA" or "BAAB"; A is the candidate
    tps: float
    tps_rival: float

    @property
    def log_ratio(self) -> float:
        """log(candidate ÷ rival)."""
        return math.log(self.tps / self.tps_rival)


@dataclass(frozen=True)
class PairPlan:
    """Which prompt and order pair `index` of a stage gets; the same plan after a restart."""

    stage: Stage
    prompts: Sequence[Prompt]
    seed: int

    def at(self, index: int) -> tuple[Prompt, str]:
        """Return prompt and order of one pair.

        Prompts are dealt from a shuffled deck, so that a stage covers all kinds. Orders come in
        twos, one of each, so that a stage is balanced.
        """
        rng = np.random.default_rng([self.seed, *self.stage.encode()])
        deck = rng.permutation(len(self.prompts))
        flips = rng.integers(0, 2, 4096)
        first = bool(flips[index // 2 % len(flips)]) ^ bool(index % 2)
        return self.prompts[deck[index % len(deck)]], "ABBA" if first else "BAAB"


def warm_up(engine: Engine, prompt: Prompt, num_tokens: int) -> None:
    """Let an engine compile, allocate and fill its caches before anything is timed."""
    for length in (4, 16):
        engine.generate(prompt.tokens, min(length, num_tokens))


def measure_pair(
    candidate: Engine, rival: Engine, plan: PairPlan, index: int, num_tokens: int
) -> Pair:
    """Time one pair.

    Args:
        num_tokens: new tokens per block; each engine decodes two blocks.

    Raises:
        EngineError: one of the engines failed or broke the protocol.
    """
    prompt, order = plan.at(index)
    spent = {"A": 0.0, "B": 0.0}
    engines = {"A": candidate, "B": rival}
    for letter in order:
        spent[letter] += engines[letter].generate(prompt.tokens, num_tokens).duration_s
    tps = {letter: 2 * num_tokens / seconds for letter, seconds in spent.items()}
    return Pair(plan.stage, index, prompt.id, order, tps["A"], tps["B"])
