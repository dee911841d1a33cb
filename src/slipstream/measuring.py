"""Commands that measure one variant outside a run: race it, reproduce it, take it apart."""

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from slipstream.evaluation.errors import SlipstreamError

from .display import (
    print_json,
    print_machine,
    print_profile,
    print_projection,
    print_verification,
    say_plainly,
    show_rows,
    verification_row,
)
from .options import (
    DEFAULT_CHALLENGE,
    AsJson,
    ChallengeOption,
    MemoryUrl,
    SeedLevers,
    UnsafeLocal,
    VariantOrSeed,
    read_levers,
)

app = typer.Typer()


@app.command()
def bench(
    variant: str,
    against: Annotated[
        str, typer.Option(help="A variant, `seed`, or transformers-bf16.")
    ] = "transformers-bf16",
    challenge: ChallengeOption = DEFAULT_CHALLENGE,
    pairs: Annotated[int, typer.Option(min=2, help="Interleaved ABBA pairs.")] = 8,
    unsafe_local: UnsafeLocal = False,
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Race a variant against another engine, interleaved; nothing is recorded."""
    from slipstream.graph.racing import race
    from slipstream.memory.store import open_memory

    with open_memory(memory) as store:
        gain, tps, tps_rival = race(
            store, variant, against, challenge, pairs, say_plainly, unsafe_local=unsafe_local
        )
    low, high = gain.interval()
    row = {
        "variant": variant,
        "against": against,
        "tps": tps,
        "tps_against": tps_rival,
        "ratio": gain.ratio,
        "ratio_low": low,
        "ratio_high": high,
        "pairs": gain.num_pairs,
    }
    show_rows([row], as_json)


@app.command()
def verify(
    variant: str,
    challenge: Annotated[str, typer.Option(help="Whose rules.")] = DEFAULT_CHALLENGE,
    fresh_seed: Annotated[
        bool, typer.Option("--fresh-seed", help="New held-out documents too; takes longer.")
    ] = False,
    unsafe_local: UnsafeLocal = False,
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Reproduce a variant's result from its hash, in new processes, on new prompts."""
    from slipstream.graph.reproducing import Outcome, reproduce
    from slipstream.memory.store import open_memory

    with open_memory(memory) as store:
        found = reproduce(
            store,
            variant,
            challenge,
            fresh_seed=fresh_seed,
            unsafe_local=unsafe_local,
            say=say_plainly,
        )
    if as_json:
        print_json(verification_row(found))
    else:
        print_verification(found)
    sys.exit(0 if found.outcome is Outcome.VALID else 3)


@app.command()
def profile(
    variant: VariantOrSeed,
    levers: SeedLevers = None,
    challenge: ChallengeOption = DEFAULT_CHALLENGE,
    on: Annotated[
        str | None,
        typer.Option(
            help="Project to this machine: `a10g`, or what `hardware --json` wrote there."
        ),
    ] = None,
    unsafe_local: UnsafeLocal = False,
    memory: MemoryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Take a decoded token apart: bytes read, time and distance to the roofline, by component."""
    from slipstream.evaluation.projection import find_machine
    from slipstream.graph.profiling import profile_variant
    from slipstream.memory.store import open_memory

    settings = read_levers(variant, levers)
    there = find_machine(on) if on else None
    say = (lambda _: None) if as_json else say_plainly
    with open_memory(memory) as store:
        found = profile_variant(
            store, variant, challenge, say, settings=settings, unsafe_local=unsafe_local
        )
    if as_json:
        row = {**asdict(found), "roofline": found.roofline, "tps": 1 / found.token_s}
        if there:
            row["projection"] = {"machine": asdict(there), "tps": found.project(there)}
        print_json(row)
    else:
        print_profile(found)
        if there:
            print_projection(found.project(there), there)


@app.command()
def hardware(
    device: Annotated[str, typer.Option(help="cpu or cuda; the GPU if there is one.")] = "",
    as_json: AsJson = False,
) -> None:
    """Measure what a projection has to know of this machine: memory, launches, features."""
    from slipstream.evaluation.hardware import detect_hardware, profile_machine

    if device not in ("", "cpu", "cuda"):
        raise SlipstreamError(f"--device {device} is neither cpu nor cuda")
    found = profile_machine(device or ("cuda" if detect_hardware().gpus else "cpu"))
    if as_json:
        print_json({**asdict(found), "features": found.features})
    else:
        print_machine(found)
