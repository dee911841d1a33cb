"""What runs on a rented machine: reads an errand, measures, tells each result, ends.

    python -m slipstream.evaluation.rented ERRAND RESULTS

ERRAND is a folder, read-only: `errand.json`, and the trees of its variants under `variants/`. Each
result is printed as a line, for whoever follows the job's log; RESULTS/results.jsonl is a copy that
outlives the log. Nothing here knows a key.
"""

import json
import sys
import tempfile
from pathlib import Path

from slipstream.kernels.variants import VariantStore, read_tree

from . import secret
from .bench import open_bench
from .challenge import Challenge
from .errors import SlipstreamError
from .hardware import detect_hardware
from .plans import BeginLine, EndLine, FailureLine, Line, carry_out, plan_from_json, print_line

RESULTS = "results.jsonl"


def run(errand: Path, results: Path) -> None:
    """Carry an errand out."""
    given = json.loads((errand / "errand.json").read_text())
    challenge, plan = Challenge.model_validate(given["challenge"]), plan_from_json(given["plan"])
    secret.use(given["secret"])
    with (
        tempfile.TemporaryDirectory() as scratch,
        (results / RESULTS).open("w") as file,
    ):
        store = VariantStore(Path(scratch) / "variants")
        for folder in sorted((errand / "variants").iterdir()):
            store.add(read_tree(folder))
        count = 0

        def tell(line: Line) -> None:
            print(print_line(line), flush=True)
            file.write(f"{print_line(line)}\n")
            file.flush()

        tell(BeginLine(detect_hardware().label))
        opened = open_bench(
            challenge,
            store.path,
            Path(scratch),
            seed=given["seed"],
            unsafe_local=given["unsafe"],
            say=lambda text: print(text, flush=True),
        )
        with opened as bench:
            bench.evaluator.prepare()
            for line in carry_out(plan, bench.evaluator):
                tell(line)
                count += not isinstance(line, FailureLine)
        tell(EndLine(count))


def main() -> None:
    """Run; the user's errors end as one line, and with exit code 1."""
    errand, results = map(Path, sys.argv[1:])
    try:
        run(errand, results)
    except SlipstreamError as error:
        print(print_line(FailureLine("SlipstreamError", str(error))), flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
