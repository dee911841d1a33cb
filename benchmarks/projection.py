"""Project our engine's speed from one GPU to another, and hold it against what was measured there.

    python benchmarks/projection.py measure --out h100.json          # on one GPU
    python benchmarks/projection.py measure --out h200.json          # on another
    python benchmarks/projection.py compare h100.json h200.json --on a10g

`measure` takes the machine's profile (memory, launches) and times five variants of Gemma 4 E4B's
sizes with random weights. `compare` predicts the second machine from the first, variant by variant,
and then a machine that is only known by its profile. A projection is never a measurement. Its last
line is JSON.

The row with a drafter is a projection on top of one: tokens a round from the acceptance that was
reported by the Fast Gemma Challenge for the Gemma 4 assistant, seven drafts a round, each as long
as it took there (4.31 tokens at 315 a second are 13.7 ms; a token without drafts took 7.9).
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from slipstream.evaluation.hardware import profile_machine
from slipstream.evaluation.projection import Machine, Measured, find_machine, project

ENGINE = Path(__file__).resolve().parent / "peers" / "slipstream_engine" / "decode.py"
VARIANTS = {
    "bf16": ["weights=dense"],
    "bf16, int8 head": ["head=int8"],
    "int8": ["weights=int8", "head=int8"],
    "int4 g128, int8 head": ["weights=int4-g128", "head=int8"],
    "int4": ["weights=int4-g128", "head=int4-g128"],
}
ACCEPTANCE = (0.69, 0.53, 0.43, 0.34, 0.27, 0.22, 0.17)
DRAFT_S = ((1 + sum(ACCEPTANCE)) / 315 - 1 / 126.8) / len(ACCEPTANCE)


def measure(options: argparse.Namespace) -> None:
    """Time all variants, one after the other in one process; write all down, with the machine."""
    from slipstream.evaluation.convert import make_random

    machine = profile_machine("cuda")
    print(f"{machine.name}: {machine.gbps:.0f} GB/s, {machine.launch_us:.2f} µs a launch")
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or Path(scratch)
        if options.model is None:
            make_random("gemma-4-E4B", model)
        levers = [word for own in VARIANTS.values() for word in ("/", *own)]
        command = [sys.executable, str(ENGINE), "--model", str(model), *levers]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise SystemExit(f"error: a variant doesn't run here: {reason}")
        for name, line in zip(VARIANTS, done.stdout.strip().splitlines(), strict=True):
            row = json.loads(line)
            rows[name] = asdict(
                Measured(row["decode_tps"], 1e9 * row["read_gb"], row["num_launches"])
            )
            print(f"{name}: {row['decode_tps']:.1f} tokens/s", flush=True)
    found = {"machine": asdict(machine), "variants": rows}
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def read(path: Path) -> tuple[Machine, dict[str, Measured]]:
    """Return what `measure` wrote."""
    found: dict[str, Any] = json.loads(path.read_text())
    return Machine(**found["machine"]), {
        name: Measured(**row) for name, row in found["variants"].items()
    }


def with_drafter(tps: float) -> float:
    """Return what drafting would make of a speed without it."""
    return (1 + sum(ACCEPTANCE)) / (1 / tps + len(ACCEPTANCE) * DRAFT_S)


def compare(options: argparse.Namespace) -> None:
    """Print predicted beside measured, and what the unmeasured machine would do."""
    (here, source), (there, target) = read(options.here), read(options.there)
    unmeasured = find_machine(options.on)
    table = Table(title=f"from {here.name} to {there.name}, and to {unmeasured.name}", box=None)
    columns = ("variant", "measured here", "predicted there", "measured there", "off by")
    for column in (*columns, f"projected, {options.on}"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    rows: list[dict[str, Any]] = []
    for name, found in source.items():
        predicted, known = project(found, here, there), target[name].tps
        far = project(found, here, unmeasured)
        error = predicted / known - 1
        rows.append(
            {
                "variant": name,
                "here_tps": found.tps,
                "predicted_tps": predicted,
                "measured_tps": known,
                "error": error,
                f"projected_{options.on}_tps": far,
            }
        )
        figures = (found.tps, predicted, known)
        table.add_row(name, *(f"{tps:.1f}" for tps in figures), f"{error:+.1%}", f"{far:.1f}")
    drafted = with_drafter(project(source["int4"], here, unmeasured))
    table.add_row("int4 and the Gemma 4 assistant", "", "", "", "", f"{drafted:.1f}")
    Console().print(table)
    print(
        json.dumps(
            {
                "rows": rows,
                "here": asdict(here),
                "there": asdict(there),
                "unmeasured": asdict(unmeasured),
                "with_drafter_tps": drafted,
                "worst_error": max((row["error"] for row in rows), key=abs),
                "rms_error": math.sqrt(sum(row["error"] ** 2 for row in rows) / len(rows)),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("measure", help="on the GPU at hand")
    measuring.add_argument("--model", type=Path, help="a folder, instead of random weights")
    measuring.add_argument("--out", type=Path, required=True)
    measuring.set_defaults(do=measure)
    comparing = commands.add_parser("compare", help="what two GPUs measured")
    comparing.add_argument("here", type=Path)
    comparing.add_argument("there", type=Path)
    comparing.add_argument("--on", default="a10g", help="a GPU known by its profile alone")
    comparing.set_defaults(do=compare)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
