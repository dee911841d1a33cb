"""Project our engine's speed from one GPU to another, and hold it against what was measured there.

    python benchmarks/projection.py measure --out h100.json          # on one GPU
    python benchmarks/projection.py measure --out h200.json          # on another
    python benchmarks/projection.py compare h100.json h200.json      # hold one against the other
    python benchmarks/projection.py foretell h100.json --on a10g     # where nobody has measured

`measure` takes the machine's profile (memory, launches) and times five variants of Gemma 4 E4B's
sizes with random weights. `compare` predicts the second machine from the first, variant by variant.
`foretell` does so for a machine that is only known by its profile. A projection is never a
measurement. The last line is JSON.

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
        repeats = ["--repeats", str(options.repeats)]
        command = [sys.executable, str(ENGINE), "--model", str(model), *repeats, *levers]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found_rows = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
        if done.returncode or len(found_rows) < len(VARIANTS):
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise SystemExit(f"error: {[*VARIANTS][len(found_rows)]} doesn't run here: {reason}")
        for name, row in zip(VARIANTS, found_rows, strict=True):
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


def table_of(title: str, *columns: str) -> Table:
    """Return an empty table, a variant a row."""
    table = Table(title=title, box=None)
    for column in ("variant", *columns):
        table.add_column(column, justify="left" if column == "variant" else "right")
    return table


def compare(options: argparse.Namespace) -> None:
    """Print predicted beside measured."""
    (here, source), (there, target) = read(options.here), read(options.there)
    columns = ("measured here", "predicted there", "measured there", "off by")
    table = table_of(f"from {here.name} to {there.name}", *columns)
    rows: list[dict[str, Any]] = []
    for name, found in source.items():
        predicted, known = project(found, here, there), target[name].tps
        error = predicted / known - 1
        rows.append(
            {
                "variant": name,
                "here_tps": found.tps,
                "predicted_tps": predicted,
                "measured_tps": known,
                "error": error,
            }
        )
        figures = (found.tps, predicted, known)
        table.add_row(name, *(f"{tps:.1f}" for tps in figures), f"{error:+.1%}")
    Console().print(table)
    print(
        json.dumps(
            {
                "rows": rows,
                "here": asdict(here),
                "there": asdict(there),
                "worst_error": max((row["error"] for row in rows), key=abs),
                "rms_error": math.sqrt(sum(row["error"] ** 2 for row in rows) / len(rows)),
            }
        )
    )


def foretell(options: argparse.Namespace) -> None:
    """Print what a machine would do that is known by its profile alone."""
    here, source = read(options.here)
    there = find_machine(options.on)
    table = table_of(
        f"from {here.name} to {there.name}", "measured here", f"{options.on}, projected"
    )
    rows = []
    for name, found in source.items():
        far = project(found, here, there)
        rows.append({"variant": name, "here_tps": found.tps, "projected_tps": far})
        table.add_row(name, f"{found.tps:.1f}", f"{far:.1f}")
    drafted = with_drafter(project(source["int4"], here, there))
    table.add_row("int4 and the Gemma 4 assistant", "", f"{drafted:.1f}")
    Console().print(table)
    found_all = {"rows": rows, "with_drafter_tps": drafted}
    print(json.dumps({**found_all, "here": asdict(here), "there": asdict(there)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("measure", help="on the GPU at hand")
    measuring.add_argument("--model", type=Path, help="a folder, instead of random weights")
    measuring.add_argument("--repeats", type=int, default=5)
    measuring.add_argument("--out", type=Path, required=True)
    measuring.set_defaults(do=measure)
    comparing = commands.add_parser("compare", help="what two GPUs measured")
    comparing.add_argument("here", type=Path)
    comparing.add_argument("there", type=Path)
    comparing.set_defaults(do=compare)
    foretelling = commands.add_parser("foretell", help="from what one GPU measured")
    foretelling.add_argument("here", type=Path)
    foretelling.add_argument("--on", default="a10g", help="a GPU known by its profile alone")
    foretelling.set_defaults(do=foretell)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
