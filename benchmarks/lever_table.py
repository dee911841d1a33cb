"""Measure every combination of the CPU levers once: speed, quality and noise, into a table.

    python benchmarks/lever_table.py [--levers weights,head,...] [--passes 1] [--no-quality]

SmolLM2-135M-Instruct on all cores of this machine, in this order: with step=native, every weights ×
head × activations × draft × threads; noise; quality; then eager, every weights × head × attention ×
norm × fuse × cache × draft on all cores. `compile` and `dtype` stay at the seed's value unless
--levers names them: compiling takes 30 s a combination, and each would double the eager ones.

A speed is tokens per second from the prompt handed over to the last token back, 24 new tokens, in
this process, with the challenge's context, after a short prompt (76 tokens, the table's `short`)
and a longer one (283 tokens, `long`). A timing that others on the machine disturbed is thrown away
and repeated. The machine itself is a fifth faster at some times than at others, so one engine is
timed again and again in between, and speeds are divided by its own at the time. Passes go through
all combinations in another order each; what strays from the same engine with other drafts is timed
twice more; the table has the medians.

On a machine that is never quiet: `nice -n -15 python benchmarks/lever_table.py --max-others 0.6`.
Beside one busy core, an engine then ran at 91 % of its speed and two engines' ratio strayed by 5 %,
against 37 % and 70 % at ordinary priority. The last third of the eager combinations in the table
was timed like that.

Noise is A/A pairs as the loop times them (ABBA, an engine against itself). Quality is the
challenge's own documents, scored through the engine's decode step, for each weights × head ×
activations: the public ones, and the held-out ones if those pass the gate. An eager combination
rounds the same weights in much the same way and shares the figure.

Each line of `lever_table.raw.jsonl` is written when it is measured: started again, it goes on. The
results are `lever_table.csv` and `lever_table.json`; the last line printed is JSON.
"""

import argparse
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from lever_clock import CONTROL, MAX_OTHERS, NUM_TOKENS, Clock, Loader, Settings
from lever_record import PROMPTS, Record, Rows, key_of, summarise
from lever_space import VARIED, Key, combinations

from slipstream.evaluation.bench import open_bench
from slipstream.evaluation.challenge import Challenge, load_challenge
from slipstream.evaluation.gates import refusal as gate_refusal
from slipstream.evaluation.gates import report
from slipstream.evaluation.hardware import bandwidth_of, detect_hardware
from slipstream.evaluation.models import fetch_model
from slipstream.evaluation.prompts import Split, load_prompts
from slipstream.kernels.census import read_shape
from slipstream.kernels.levers import SEED_SETTINGS, Machine
from slipstream.kernels.variants import VariantStore, seed_tree

ROUNDS = 4  # how often a pass comes back to combinations that were always disturbed
NOISE_ENGINES, NOISE_PAIRS = 10, 8
CONTROL_EVERY = 8
# Combinations that share these share a loaded engine; the other levers are switched within it.
_LOADED = {"eager": ("weights", "fuse", "norm"), "native": ("weights", "head", "activations")}
_ALWAYS = ("step", "threads", "dtype", "compile")


def grouped(todo: Sequence[Settings], seed: int) -> Iterator[list[Settings]]:
    """Yield combinations that one loaded engine can serve together, in a random order."""
    groups: dict[Key, list[Settings]] = defaultdict(list)
    for settings in todo:
        names = (*_LOADED[settings["step"]], *_ALWAYS)
        groups[tuple(settings[name] for name in names)].append(settings)
    draw = random.Random(seed)
    for group in draw.sample(list(groups.values()), len(groups)):
        yield draw.sample(group, len(group))


def time_all(
    every: Sequence[Settings], number: int, loader: Loader, clock: Clock, record: Record
) -> None:
    """Time what isn't timed yet in this pass; come back to what was disturbed."""
    control = loader.load({**SEED_SETTINGS, **CONTROL})
    clock.warm_up(control, NUM_TOKENS)
    for attempt in range(ROUNDS):
        done = record.done("speed", number)
        todo = [settings for settings in every if key_of(settings) not in done]
        for count, group in enumerate(grouped(todo, 10 * number + attempt)):
            engine = loader.load(group[0])
            loader.switch(engine, group[0])
            clock.warm_up(engine, NUM_TOKENS)
            for index, settings in enumerate(group):
                if index % CONTROL_EVERY == 0:
                    control_tps = clock.control(control)
                loader.switch(engine, settings)
                clock.warm_up(engine, 3)
                if speeds := clock.speeds(engine):
                    figures = {"pass": number, "tps": speeds, "control": control_tps}
                    record.add("speed", settings, **figures)
            if count % 10 == 0:
                print(f"{time.strftime('%X')} pass {number}, {group[0]['step']}: group {count}")


def measure_noise(every: Sequence[Settings], loader: Loader, clock: Clock, record: Record) -> None:
    """Race some engines against themselves."""
    chosen = random.Random(5).sample(list(every), NOISE_ENGINES)
    done = record.done("noise")
    for settings in chosen:
        if key_of(settings) in done:
            continue
        engine = loader.load(settings)
        clock.warm_up(engine, NUM_TOKENS)
        ratios = [clock.pair(engine) for _ in range(NOISE_PAIRS)]
        record.add("noise", settings, log_ratios=[r for r in ratios if r is not None])


def measure_quality(every: Sequence[Settings], challenge: Challenge, record: Record) -> None:
    """Score each rounding on the challenge's documents."""
    names = ("weights", "head", "activations")
    roundings = {tuple(settings[name] for name in names): settings for settings in every}
    done = record.done("quality")
    fixed = challenge.quality.model_copy(update={"held_out": "fixed"})
    challenge = challenge.model_copy(update={"quality": fixed})
    with tempfile.TemporaryDirectory() as name:
        store = VariantStore(Path(name) / "variants")
        with open_bench(challenge, store.path, Path(name), seed=1, unsafe_local=True) as bench:
            for rounding in roundings:
                settings = {**SEED_SETTINGS, **dict(zip(names, rounding, strict=True))}
                settings["step"] = "native"
                if key_of(settings) in done:
                    continue
                tree = seed_tree(settings)
                store.add(tree)
                scores: dict[str, Rows] = {}
                for split in (Split.PUBLIC, Split.HELD_OUT):
                    found = list(bench.evaluator.scores(tree.id, split, ()))
                    scores[split.value] = [asdict(score) for score in found]
                    if gate_refusal(report(found), challenge.tier):
                        break  # as in the loop: what fails in public gets no other chance
                bench.evaluator.release(tree.id)
                record.add("quality", settings, scores=scores)
                print(f"{time.strftime('%X')} quality of {' '.join(rounding)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--levers", default=",".join(VARIED), help="which levers vary")
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--max-others", type=float, default=MAX_OTHERS, metavar="SHARE")
    parser.add_argument("--no-quality", action="store_true")
    options = parser.parse_args()
    varied = options.levers.split(",")
    if unknown := set(varied) - set(SEED_SETTINGS):
        parser.error(f"no lever {min(unknown)!r}: {', '.join(SEED_SETTINGS)}")
    fixed = {name: value for name, value in SEED_SETTINGS.items() if name not in varied}
    print(f"not varied: {fixed}")
    hardware, challenge = detect_hardware(), load_challenge("smollm2-cpu")
    model_dir = fetch_model(challenge.model)
    shape, machine = read_shape(model_dir), Machine("cpu", hardware.num_cores, True)
    tokens = {
        p.id: list(p.tokens)
        for p in load_prompts(challenge.workload, model_dir, shape.vocab_size)
        if p.id in PROMPTS
    }
    clock = Clock({name: tokens[name] for name in PROMPTS}, options.max_others)
    loader, record = Loader(model_dir, challenge.workload.max_context), Record()
    native, eager = (combinations(shape, machine, varied, step=s) for s in ("native", "eager"))
    print(f"{len(native)} native and {len(eager)} eager combinations on {hardware.label}")
    begun = time.monotonic()
    for number in range(options.passes):
        time_all(native, number, loader, clock, record)
        if not number:
            measure_noise([*native, *eager], loader, clock, record)
            if native and not options.no_quality:
                measure_quality(native, challenge, record)
            if not record.of("bandwidth"):
                record.add("bandwidth", {}, gbps=bandwidth_of("cpu"))
        time_all(eager, number, loader, clock, record)
    doubtful = record.doubtful()
    again = [settings for settings in (*native, *eager) if key_of(settings) in doubtful]
    print(f"{len(again)} are timed twice more")
    for number in (options.passes, options.passes + 1):
        time_all(again, number, loader, clock, record)
    minutes = (time.monotonic() - begun) / 60
    figures = summarise(record, hardware.label, fixed)
    figures |= {"minutes": round(minutes, 1), "thrown_away": clock.thrown_away}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
