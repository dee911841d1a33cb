"""What a saboteur can do to its rival's score: the default model, in the sandbox.

    python benchmarks/sabotage.py [--rounds 60]

The saboteur decodes like its honest twin; from its first answer on it has four threads that hash
memory without pause and four forked daemons that spin, on a machine with fewer cores, all of them
held back only while it is timed itself. Each round races the rival against both, one ABBA pair
each with the same prompts, who comes first drawn at random. Reported is how much slower the rival
is beside the saboteur, with a 95 % interval, and beside it δ, the least gain that would be
believed.

The last line is JSON.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console

from slipstream.evaluation.challenge import load_challenge
from slipstream.evaluation.child import ChildEngine
from slipstream.evaluation.conditions import Watch
from slipstream.evaluation.models import fetch_model
from slipstream.evaluation.pairs import PairPlan, Stage, measure_pair
from slipstream.evaluation.prompts import fresh_prompts
from slipstream.evaluation.sandbox import Sandbox, problem
from slipstream.evaluation.statistics import estimate, noise_floor
from slipstream.kernels.census import read_shape
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import Tree, VariantStore, seed_tree

SABOTEUR = """
import hashlib as _hashlib
import os as _os
import signal as _signal
import threading as _threading

_load = load
_idle = _threading.Event()


def _hog():
    block = bytes(1 << 20)
    while True:
        _idle.wait()
        _hashlib.sha256(block)


class _Saboteur(Engine):
    daemons = ()

    def generate(self, prompt, num_tokens):
        _idle.clear()
        for pid in self.daemons:
            _os.kill(pid, _signal.SIGSTOP)
        tokens = super().generate(prompt, num_tokens)
        if not self.daemons:
            self.daemons = [self.spin() for _ in range(4)]
            for _ in range(4):
                _threading.Thread(target=_hog, daemon=True).start()
        for pid in self.daemons:
            _os.kill(pid, _signal.SIGCONT)
        _idle.set()
        return tokens

    def spin(self):
        pid = _os.fork()
        if pid == 0:
            _os.setsid()
            while True:
                pass
        return pid


def load(tree, model_dir, max_context):
    loaded = _load(tree, model_dir, max_context)
    loaded.__class__ = _Saboteur
    return loaded
"""
SETTINGS = {**SEED_SETTINGS, "weights": "int4-g32", "fuse": "qkv+gate-up", "cache": "static"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=60)
    rounds: int = parser.parse_args().rounds
    if reason := problem():
        raise SystemExit(f"error: no sandbox: {reason}")
    challenge = load_challenge("smollm2-cpu")
    model_dir = fetch_model(challenge.model)
    honest = seed_tree(SETTINGS)
    package = honest.files["engine/__init__.py"] + SABOTEUR.encode()
    hostile = Tree({**honest.files, "engine/__init__.py": package})
    rng = np.random.default_rng(2)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store = VariantStore(folder / "variants")
        vocab_size = read_shape(model_dir).vocab_size
        prompts = fresh_prompts(challenge.workload, model_dir, vocab_size, 1, folder)
        engines = {
            name: ChildEngine(store.add(tree), model_dir, max_context=2048, sandbox=Sandbox())
            for name, tree in (("honest", honest), ("hostile", hostile), ("rival", honest))
        }
        tps: dict[str, list[float]] = {"honest": [], "hostile": []}
        plan = PairPlan(Stage.TEST, prompts, 1, "sabotage", challenge.workload.num_tokens)
        watch = Watch(gpu=False, max_disturbance=math.inf)
        try:
            for engine in engines.values():
                engine.generate(prompts[0].tokens, 16)
            for number in range(rounds):
                for neighbour in rng.permutation(["honest", "hostile"]):
                    ours, rival = engines[neighbour], engines["rival"]
                    (pair,) = measure_pair(ours, rival, plan, number, watch)
                    tps[neighbour].append(pair.tps_rival)
        finally:
            for engine in engines.values():
                engine.close()
    ratios = np.log(tps["hostile"]) - np.log(tps["honest"])
    change = estimate(ratios.tolist())
    low, high = change.interval()
    delta = max(
        challenge.acceptance.min_gain,
        noise_floor(ratios.tolist(), challenge.acceptance.test_pairs),
    )
    Console(soft_wrap=True).print(
        f"the rival beside the saboteur: {change.ratio - 1:+.2%} "
        f"({low - 1:+.2%} to {high - 1:+.2%}) "
        f"of its speed beside the honest twin ({np.median(tps['honest']):.1f} tokens/s), "
        f"{rounds} rounds; δ of a test here: {delta:.2%}"
    )
    print(
        json.dumps(
            {
                "change": change.ratio - 1,
                "change_low": low - 1,
                "change_high": high - 1,
                "delta": delta,
                "rounds": rounds,
            }
        )
    )


if __name__ == "__main__":
    main()
