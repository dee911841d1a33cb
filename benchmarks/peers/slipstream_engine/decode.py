"""Time our engine at batch 1 on a checkpoint folder, which may be random weights.

    python benchmarks/peers/slipstream_engine/decode.py --model DIR weights=int4-g128 head=int4-g128

More variants follow after a slash each, in the same process. On standard output comes one line of
JSON for each.
"""

import argparse
import gc
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from slipstream.evaluation.hardware import bandwidth_of
from slipstream.kernels.engine import load


def measure(options: argparse.Namespace, levers: list[str], bandwidth: float) -> dict[str, Any]:
    """Load a variant and time it."""
    settings = {"step": "graph", **dict(setting.split("=") for setting in levers)}
    tree = Path(tempfile.mkdtemp())
    (tree / "levers.json").write_text(json.dumps(settings))
    engine = load(tree, options.model, 4096)
    size = engine.vocab_size

    def seconds(num_prompt: int, num_tokens: int) -> float:
        prompt = torch.randint(10, size, (num_prompt,)).tolist()
        start = time.perf_counter()
        engine.generate(prompt, num_tokens)
        return time.perf_counter() - start

    for _ in range(2):
        seconds(options.prompt_tokens, 16)
        seconds(options.long_prompt, 1)
    decode, whole, first = [], [], []
    for _ in range(options.repeats):
        to_first = seconds(options.prompt_tokens, 1)
        total = seconds(options.prompt_tokens, options.new_tokens)
        decode.append((options.new_tokens - 1) / (total - to_first))
        whole.append(options.new_tokens / total)
        first.append(1e3 * to_first)
    long = [1e3 * seconds(options.long_prompt, 1) for _ in range(options.repeats)]
    plan = engine.model.plan(1, "feed-back")
    read = sum(launch.nbytes for launch in plan)
    tps = statistics.median(decode)
    return {
        "name": "slipstream",
        "scheme": settings.get("weights", "dense").replace("dense", "bf16"),
        "settings": settings,
        "decode_tps": tps,
        "tps": statistics.median(whole),
        "ttft_ms": statistics.median(first),
        "long_ttft_ms": statistics.median(long),
        "read_gb": read / 1e9,
        "num_launches": len(plan),
        "bandwidth_gbps": bandwidth,
        "roofline_fraction": tps * read / bandwidth / 1e9,
        "samples": decode,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--long-prompt", type=int, default=2048)
    parser.add_argument("settings", nargs="*", help="lever=value, and a slash between variants")
    options = parser.parse_args()
    bandwidth = bandwidth_of("cuda")
    parts = itertools.groupby(options.settings, lambda setting: setting != "/")
    for levers in [list(some) for is_variant, some in parts if is_variant] or [[]]:
        print(json.dumps(measure(options, levers, bandwidth)), flush=True)
        gc.collect()  # an engine and its graphs refer to each other
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
