"""From starting an engine's process to its first token, warm cache, beside transformers.

    python benchmarks/engine_start.py [--repeats 5]

Interleaved; the seed engine, the seed engine with int4 weights, and transformers bf16, all as
children behind the same protocol. The last line is JSON with medians in seconds.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from slipstream.evaluation.baselines import baseline_tree
from slipstream.evaluation.challenge import load_challenge
from slipstream.evaluation.child import ChildEngine
from slipstream.evaluation.models import fetch_model
from slipstream.evaluation.sandbox import choose
from slipstream.kernels.variants import VariantStore, seed_tree


def start_s(tree: Path, model_dir: Path) -> float:
    begun = time.perf_counter()
    with ChildEngine(tree, model_dir, max_context=2048, sandbox=choose()) as engine:
        engine.generate([1, 2, 3, 4], 1)
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats: int = parser.parse_args().repeats
    model_dir = fetch_model(load_challenge("smollm2-cpu").model)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = VariantStore(Path(folder) / "variants")
        trees = {
            "seed": store.add(seed_tree({})),
            "seed int4-g32": store.add(seed_tree({"weights": "int4-g32", "head": "int8"})),
            "transformers bf16": baseline_tree("transformers-bf16", Path(folder)),
        }
        for tree in trees.values():
            start_s(tree, model_dir)  # warms the page cache
        for _ in range(repeats):
            for name, tree in trees.items():
                times.setdefault(name, []).append(start_s(tree, model_dir))
    table = Table(title="start to first token, seconds", box=None)
    for column in ("engine", "min", "median", "max"):
        table.add_column(column)
    for name, values in times.items():
        figures = (min(values), statistics.median(values), max(values))
        table.add_row(name, *(f"{figure:.2f}" for figure in figures))
    Console().print(table)
    print(json.dumps({name: round(statistics.median(v), 3) for name, v in times.items()}))


if __name__ == "__main__":
    main()
