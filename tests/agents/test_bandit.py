"""The bandit: gain for cost, and everybody gets a try."""

import random
from collections import Counter

from slipstream.agents.bandit import Track, choose


def picks(true: dict[str, tuple[float, float]], rounds: int, seed: int) -> Counter[str]:
    """Play a bandit; `true` has mean gain and dollars per hypothesis."""
    rng = random.Random(seed)
    gains: dict[str, list[float]] = {name: [] for name in true}
    for number in range(rounds):
        tracks = [Track(n, tuple(g), true[n][1] * len(g)) for n, g in gains.items()]
        name = choose(tracks, seed=f"{seed} {number}", experiments=20, budget_usd=10.0)
        gains[name].append(max(0.0, rng.gauss(true[name][0], 0.05)))
    return Counter({name: len(found) for name, found in gains.items()})


def test_it_favours_what_gains() -> None:
    for seed in range(5):
        found = picks({"good": (0.2, 0.1), "idle": (0.0, 0.1), "bad": (0.0, 0.1)}, 120, seed)
        assert found["good"] > 80
        assert min(found.values()) >= 1


def test_of_two_alike_it_favours_the_cheap() -> None:
    total: Counter[str] = Counter()
    for seed in range(10):
        total += picks({"dear": (0.1, 2.0), "cheap": (0.1, 0.02)}, 60, seed)
    assert total["cheap"] > 3 * total["dear"]


def test_dear_but_better_can_pay() -> None:
    total: Counter[str] = Counter()
    for seed in range(10):
        total += picks({"dear": (0.3, 0.3), "cheap": (0.02, 0.0)}, 60, seed)
    assert total["dear"] > 2 * total["cheap"]


def test_same_seed_same_choice() -> None:
    tracks = [Track("a"), Track("b"), Track("c")]
    chosen = {choose(tracks, seed="x", experiments=5, budget_usd=None) for _ in range(5)}
    assert len(chosen) == 1
    spread = {choose(tracks, seed=str(n), experiments=5, budget_usd=None) for n in range(50)}
    assert spread == {"a", "b", "c"}
