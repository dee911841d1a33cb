"""Whether the quality gate says the same thing every time: A/A repetitions on the default model.

    python benchmarks/quality_repeats.py [--repeats 20]

Each repetition starts the variant anew and scores the public documents. int4 with groups of 32 is
nearly lossless for this checkpoint and has to pass near-lossless each time; groups of 64 are not,
and must not. The last line is JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from slipstream.evaluation.bench import open_bench
from slipstream.evaluation.challenge import load_challenge
from slipstream.evaluation.gates import refusal, report
from slipstream.evaluation.prompts import Split
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import VariantStore, seed_tree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=20)
    repeats: int = parser.parse_args().repeats
    challenge = load_challenge("smollm2-cpu")
    table = Table(title=f"{repeats} repetitions, tier {challenge.tier}", box=None)
    for column in ("weights", "passes", "PPL rise, bound from", "to", "KL bound, up to"):
        table.add_column(column, justify="left" if column == "weights" else "right")
    passes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = VariantStore(Path(folder) / "variants")
        with open_bench(challenge, store.path, Path(folder), seed=1) as bench:
            evaluator = bench.evaluator
            for weights in ("int4-g32", "int4-g64"):
                tree = seed_tree({**SEED_SETTINGS, "weights": weights})
                store.add(tree)
                reports = []
                for _ in range(repeats):
                    reports.append(report(list(evaluator.scores(tree.id, Split.PUBLIC, ()))))
                    evaluator.release(tree.id)
                passes[weights] = sum(refusal(found, challenge.tier) is None for found in reports)
                rises = [found.ppl_rise_high for found in reports]
                kl = max(found.kl_high for found in reports)
                share = f"{passes[weights]} of {repeats}"
                bounds = (f"{min(rises):+.3%}", f"{max(rises):+.3%}", f"{kl:.4f}")
                table.add_row(weights, share, *bounds)
    Console().print(table)
    names = {weights.replace("-", "_"): count for weights, count in passes.items()}
    flips = sum(count not in (0, repeats) for count in passes.values())
    print(json.dumps({"repeats": repeats, "passes": names, "flips": flips}))


if __name__ == "__main__":
    main()
