"""How often the acceptance rule promotes noise, and how often it finds a true gain.

    python benchmarks/acceptance_rule.py [--measure 120] [--campaigns 100]

Noise is this machine's own: pairs of one engine against itself, measured now with `--measure N`
(about two seconds a pair) or read from `benchmarks/data/aa_pairs.json`. Candidates are replayed
from it: a stage's pairs are a random stretch of the measured series, in order, so that slow drifts
stay in; a true gain is added to each. A campaign is 300 candidates without a gain.

Beside the rule: best-number-wins (one pair each, promoted if it beats the best number so far, as in
the challenge's leaderboard and in most autoresearch loops), and a single one-sided t-test at
p < 0.05 over as many pairs as the rule's test begins with.

The last line is JSON: expected false promotions per campaign, share of true +3 % gains kept.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from slipstream.evaluation.acceptance import Evidence, Need, Rule, Verdict, decide
from slipstream.evaluation.challenge import Acceptance, Tier, load_challenge
from slipstream.evaluation.pairs import Pair, Stage
from slipstream.evaluation.statistics import estimate, noise_floor

_RECORDED = Path(__file__).with_name("data") / "aa_pairs.json"
_CANDIDATES = 300
_SETTINGS = {
    "weights": "int4-g32",
    "head": "int8",
    "fuse": "qkv+gate-up",
    "cache": "static",
    "norm": "layer-norm",
    "attention": "grouped",
    "step": "native",
}


def measure(count: int) -> dict[str, object]:
    """Race an engine against itself, `count` pairs."""
    from slipstream.evaluation.bench import open_bench
    from slipstream.evaluation.hardware import detect_hardware
    from slipstream.kernels.levers import SEED_SETTINGS
    from slipstream.kernels.variants import VariantStore, seed_tree

    challenge, hardware = load_challenge("smollm2-cpu"), detect_hardware()
    ratios, voided, tps = [], 0, []
    with tempfile.TemporaryDirectory() as scratch:
        store = VariantStore(Path(scratch) / "variants")
        tree = seed_tree({**SEED_SETTINGS, **_SETTINGS})
        store.add(tree)
        todo = dict.fromkeys(range(count), 0)
        with open_bench(challenge, store.path, Path(scratch), seed=1) as bench:
            for pair in bench.evaluator.pairs(tree.id, tree.id, Stage.NOISE, todo):
                voided += bool(pair.void)
                if not pair.void:
                    ratios.append(round(pair.log_ratio, 6))
                    tps.append(pair.tps)
    return {
        "machine": hardware.label,
        "engine": " ".join(f"{name}={value}" for name, value in _SETTINGS.items()),
        "tps": round(float(np.median(tps)), 1),
        "voided": voided,
        "log_ratios": ratios,
    }


class Replay:
    """Draws candidates from a measured series of A/A pairs."""

    def __init__(self, log_ratios: Sequence[float], seed: int) -> None:
        values = np.asarray(log_ratios, float)
        self.values = values - values.mean()
        self.rng = np.random.default_rng(seed)

    def stretch(self, count: int) -> NDArray[np.float64]:
        """Return `count` pairs in a row; which engine is A was a coin's choice, so is the sign."""
        start = int(self.rng.integers(len(self.values)))
        picks = (start + np.arange(count)) % len(self.values)
        drawn: NDArray[np.float64] = self.values[picks] * self.rng.choice((-1.0, 1.0))
        return drawn

    def judge(self, gain: float, rule: Rule) -> tuple[bool, int, float]:
        """Return whether a candidate of a true `gain` is kept, its pairs, and the claimed gain."""
        streams: dict[Stage, NDArray[np.float64]] = {}
        measured: list[Pair] = []
        while isinstance(need := decide(Evidence(measured), rule), Need):
            stage = need.stage
            assert stage is not None
            if stage not in streams:
                streams[stage] = self.stretch(rule.last_look(stage)) + gain
            so_far = sum(pair.stage is stage for pair in measured)
            measured += [
                Pair(stage, index, (), "ABBA", float(np.exp(streams[stage][index])), 1.0)
                for index in range(so_far, need.count)
            ]
        claimed = need.gain.mean if need.gain else 0.0
        return need.verdict is Verdict.KEPT, len(measured), claimed

    def best_number(self) -> tuple[int, float]:
        """Return how often noise beats the best number so far, and what the last one claims."""
        best, promotions = 0.0, 0
        for _ in range(_CANDIDATES):
            number = float(self.stretch(1)[0])
            if number > best:
                best, promotions = number, promotions + 1
        return promotions, best

    def single_test(self, gain: float, count: int) -> bool:
        """Return whether one t-test at p < 0.05 keeps a candidate."""
        found = estimate((self.stretch(count) + gain).tolist())
        return found.p_above() < 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--measure", type=int, metavar="PAIRS", help="measure the noise anew")
    parser.add_argument("--campaigns", type=int, default=100)
    options = parser.parse_args()
    if options.measure:
        recorded = measure(options.measure)
        _RECORDED.parent.mkdir(exist_ok=True)
        _RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
    noise = json.loads(_RECORDED.read_text())
    ratios: list[float] = noise["log_ratios"]
    replay = Replay(ratios, seed=11)
    acceptance = Acceptance()
    console = Console(stderr=False, soft_wrap=True)
    deviation = estimate(ratios).deviation
    console.print(
        f"{noise['machine']}; {len(ratios)} A/A pairs ({noise['voided']} void) of an engine at "
        f"{noise['tps']} tokens/s; one pair strays by {deviation:.2%}"
    )
    promoted, pairs, best, claims, tested = 0, 0, 0, 0.0, 0
    for _ in range(options.campaigns):
        floor = noise_floor(replay.stretch(acceptance.noise_pairs).tolist(), acceptance.test_pairs)
        rule = Rule(acceptance, Tier.CHALLENGE, max(acceptance.min_gain, floor), num_documents=0)
        for _ in range(_CANDIDATES):
            kept, count, _ = replay.judge(0.0, rule)
            promoted, pairs = promoted + kept, pairs + count
            tested += replay.single_test(0.0, acceptance.test_pairs)
        promotions, claim = replay.best_number()
        best, claims = best + promotions, claims + claim
    table = Table(title=f"{_CANDIDATES} candidates without a gain; candidates with one", box=None)
    for column in ("rule", "false promotions", "keeps +1 %", "keeps +3 %", "keeps +5 %", "pairs"):
        table.add_column(column, justify="left" if column == "rule" else "right", no_wrap=True)
    kept_at: dict[float, float] = {}
    for gain in (0.01, 0.03, 0.05):
        outcomes = []
        for _ in range(20 * options.campaigns):
            floor = noise_floor(
                replay.stretch(acceptance.noise_pairs).tolist(), acceptance.test_pairs
            )
            rule = Rule(acceptance, Tier.CHALLENGE, max(acceptance.min_gain, floor), 0)
            outcomes.append(replay.judge(float(np.log1p(gain)), rule)[0])
        kept_at[gain] = float(np.mean(outcomes))
    campaigns = options.campaigns
    single = [
        np.mean([replay.single_test(np.log1p(g), acceptance.test_pairs) for _ in range(2000)])
        for g in kept_at
    ]
    table.add_row(
        "staged (this one)",
        f"{promoted / campaigns:.3f}",
        *(f"{share:.0%}" for share in kept_at.values()),
        f"{pairs / campaigns / _CANDIDATES:.1f}",
    )
    table.add_row(
        "one t-test, p < 0.05",
        f"{tested / campaigns:.1f}",
        *(f"{share:.0%}" for share in single),
        str(acceptance.test_pairs),
    )
    table.add_row(
        f"best number wins (claims {np.expm1(claims / campaigns):+.1%})",
        f"{best / campaigns:.1f}",
        *("",) * 3,
        "1",
    )
    console.print(table)
    print(
        json.dumps(
            {
                "false_promotions": promoted / campaigns,
                "kept_3pct": kept_at[0.03],
                "kept_1pct": kept_at[0.01],
                "best_number_wins": best / campaigns,
                "single_t_test": tested / campaigns,
                "deviation": round(deviation, 5),
                "candidates": _CANDIDATES,
                "campaigns": campaigns,
            }
        )
    )


if __name__ == "__main__":
    main()
