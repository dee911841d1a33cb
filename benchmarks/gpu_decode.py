"""Gemma 4 E4B's sizes with random weights on one GPU: our engine, transformers and vLLM in one run.

    python benchmarks/gpu_decode.py [--peers transformers,vllm] [--schemes bf16,int8,int4]

128 prompt tokens, 512 new ones, one stream, greedy; every engine in a process of its own, one
after the other on the same GPU; ours takes its variants one after the other. Decoding speed leaves
the time to the first token out. The roofline is the bytes that a token has to read over the
bandwidth measured right before. vLLM has to be installed beside the engine (pip install
vllm==0.24.0, which wants torch 2.11), or, as it wants another transformers, in a folder of its own:
pip install --target DIR, --vllm-path DIR. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PEERS = Path(__file__).resolve().parent / "peers"
SETTINGS = {
    "bf16": ["weights=dense"],
    "int8": ["weights=int8", "head=int8"],
    "int4": ["weights=int4-g128", "head=int4-g128"],
}


def run(script: str, *arguments: str, path: Path | None = None) -> list[dict[str, Any]]:
    """Return what a script says of each variant, or at last why it says no more."""
    command = [sys.executable, str(PEERS / script / "decode.py"), *arguments]
    environ = {**os.environ, "PYTHONPATH": str(path)} if path else None
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    for row in rows:
        print(f"{row['name']} {row['scheme']}: {row['decode_tps']:.1f} tokens/s", file=sys.stderr)
    if done.returncode or not rows:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{script} {' '.join(arguments)}: {reason}", file=sys.stderr, flush=True)
        rows.append({"name": script, "error": reason})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", default="transformers,vllm")
    parser.add_argument("--schemes", default="bf16,int8,int4")
    parser.add_argument("--vllm-schemes", help="those of vLLM, if not all; each starts it anew")
    parser.add_argument("--model", type=Path, help="a checkpoint folder instead of random weights")
    parser.add_argument("--vllm-path", type=Path, help="where vLLM is, if not in this environment")
    options = parser.parse_args()
    schemes = options.schemes.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model
        if model is None:
            from slipstream.evaluation.convert import make_random

            model = Path(scratch)
            make_random("gemma-4-E4B", model)
        levers = [word for scheme in schemes for word in ("/", *SETTINGS[scheme])]
        rows = run("slipstream_engine", "--model", str(model), *levers)
        if "vllm" in options.peers:
            for scheme in (options.vllm_schemes or options.schemes).split(","):
                config = ("--config", str(model), "--scheme", scheme)
                rows += run("vllm", *config, path=options.vllm_path)
        if "transformers" in options.peers:
            rows += run("transformers_static", "--config", str(model))
    table = Table(title="one stream, 512 tokens after 128", box=None)
    for column in ("engine", "weights", "decoding", "roofline", "to first", "to first of 2,048"):
        table.add_column(column, justify="left" if column in ("engine", "weights") else "right")
    for row in rows:
        if "error" in row:
            table.add_row(row["name"], row["error"][:60])
            continue
        share = f"{row['roofline_fraction']:.0%}" if "roofline_fraction" in row else ""
        long = f"{row['long_ttft_ms']:.0f} ms" if "long_ttft_ms" in row else ""
        figures = (f"{row['decode_tps']:.1f}", share, f"{row['ttft_ms']:.0f} ms", long)
        table.add_row(row["name"], row["scheme"], *figures)
    Console().print(table)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
