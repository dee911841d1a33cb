"""Which of several models is asked next: the one whose hypotheses pay for what they cost.

Thompson sampling. Each model's gain per hypothesis is drawn from what is known of it, on a prior
that all models share, and set against its cost: the share of the run's budget that one hypothesis
of it takes, in experiments and in dollars. One that costs ten times as much has to gain as much
more. Each is tried once before any is judged.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

PRIOR_MEAN, PRIOR_DEVIATION = 0.03, 0.06  # log gain of a hypothesis, misses included
_OBSERVED_DEVIATION = 0.1
_USD_OF_A_RUN = 10.0  # where no budget says what dollars are worth


@dataclass(frozen=True)
class Track:
    """How one model did so far.

    Attributes:
        gains: log gain of each of its hypotheses; 0 for one that wasn't kept.
        usd: what its calls have cost; None if nobody knows.
    """

    name: str
    gains: tuple[float, ...] = ()
    usd: float | None = 0.0


def choose(
    tracks: Sequence[Track], *, seed: str, experiments: int, budget_usd: float | None
) -> str:
    """Return the name of the model to ask.

    Args:
        seed: of the draw.
        experiments: that the run may still make.
        budget_usd: of the run; None for no limit.
    """
    rng = random.Random(seed)
    if untried := [track.name for track in tracks if not track.gains]:
        return rng.choice(untried)
    worth = {
        track.name: _drawn_gain(track, rng) / _cost(track, experiments, budget_usd, tracks)
        for track in tracks
    }
    return max(worth, key=lambda name: worth[name])


def _drawn_gain(track: Track, rng: random.Random) -> float:
    """Draw a mean gain from its posterior (normal, known variance)."""
    count = len(track.gains)
    precision = 1 / PRIOR_DEVIATION**2 + count / _OBSERVED_DEVIATION**2
    told = PRIOR_MEAN / PRIOR_DEVIATION**2 + math.fsum(track.gains) / _OBSERVED_DEVIATION**2
    # A gain below nothing is nothing: dividing it by a cost would praise the dear.
    return max(rng.gauss(told / precision, precision**-0.5), 1e-6)


def _cost(
    track: Track, experiments: int, budget_usd: float | None, tracks: Sequence[Track]
) -> float:
    """Return the share of the budget that one hypothesis takes."""
    known = [t.usd / len(t.gains) for t in tracks if t.usd is not None and t.gains]
    if track.usd is not None and track.gains:
        usd = track.usd / len(track.gains)
    else:  # as dear as the others, until it is known
        usd = math.fsum(known) / len(known) if known else 0.0
    return 1 / max(experiments, 1) + usd / (budget_usd or _USD_OF_A_RUN)
