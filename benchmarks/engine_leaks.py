"""Whether evaluations in a row leave anything behind: processes, descriptors, files, memory.

    python benchmarks/engine_leaks.py [--evaluations 1000]

One evaluation starts an engine in the sandbox, lets it generate, scores it through `begin` and
`reveal`, puts it to sleep, and ends it. Every seventh one crashes, every eleventh one breaks the
protocol. The engine is a few lines without torch, so that what is exercised is our side of it.

The last line is JSON.
"""

import argparse
import contextlib
import json
import resource
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from slipstream.evaluation.child import ChildEngine
from slipstream.evaluation.errors import EngineError
from slipstream.evaluation.sandbox import choose

ENGINE = """
import os, struct
class Logits(bytes):
    def numpy(self): return self
    def tobytes(self): return bytes(self)
class Engine:
    vocab_size = 64
    def generate(self, prompt, num_tokens):
        if prompt == [7]: os._exit(3)
        return [0] * (num_tokens + (prompt == [11]))
    def begin(self, prompt): return Logits(struct.pack("<64f", *range(64)))
    def reveal(self, token): return self.begin([token])
def load(tree, model_dir, max_context): return Engine()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--evaluations", type=int, default=1000)
    total: int = parser.parse_args().evaluations
    box = choose()
    table = Table(title=f"{total} evaluations in a row, sandbox: {box.name}", box=None)
    for column in ("after", "processes", "descriptors", "files in /tmp", "memory MB", "ms each"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        (tree / "engine").mkdir(parents=True)
        (tree / "engine" / "__init__.py").write_text(ENGINE)
        (tree / "levers.json").write_text("{}")
        evaluate(tree, box, 1)
        first = seen(tree)
        begun = time.perf_counter()
        for number in range(1, total + 1):
            evaluate(tree, box, 7 if number % 7 == 0 else 11 if number % 11 == 0 else 1)
            if number % max(1, total // 10) == 0:
                each_ms = 1e3 * (time.perf_counter() - begun) / number
                table.add_row(str(number), *(f"{n:.0f}" for n in seen(tree)), f"{each_ms:.0f}")
        last = seen(tree)
    Console().print(table)
    names = ("processes", "descriptors", "files", "memory_mb")
    grown = {name: after - before for name, before, after in zip(names, first, last, strict=True)}
    print(json.dumps({"evaluations": total, "sandbox": box.name, "each_ms": each_ms, **grown}))


def evaluate(tree: Path, box: object, token: int) -> None:
    with (
        contextlib.suppress(EngineError),
        ChildEngine(tree, tree, max_context=64, sandbox=box) as engine,  # type: ignore[arg-type]
    ):
        engine.begin([1])
        engine.reveal(2)
        engine.generate([token], 8)


def seen(tree: Path) -> tuple[int, int, int, float]:
    """Return processes that see the tree, our descriptors, scratch folders, peak memory in MB."""
    processes = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            processes += str(tree) in (process / "mountinfo").read_text()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    scratch = len(list(Path(tempfile.gettempdir()).glob("slipstream-child-*")))
    return processes, descriptors, scratch, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
