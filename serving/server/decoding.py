"""One request after the other through one engine, first come, first served.

The engine works in a thread of its own, a few tokens at a time; between two of these turns whoever
no longer wants the answer is let go.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

TURN_S = 0.08  # often enough for whoever reads along, seldom enough to cost nothing
_MOST_AT_ONCE = 64
_ROWS = 16  # positions of a prompt that are scored in a turn


class Engine(Protocol):
    """What the server asks of an engine; most have `stream` too, trees from before it don't."""

    vocab_size: int

    def generate(self, prompt: list[int], num_tokens: int) -> list[int]:
        """Return so many greedy tokens."""

    def begin(self, prompt: list[int]) -> Tensor:
        """Read a prompt; return the next token's logits [vocab_size], float32."""

    def reveal(self, token: int) -> Tensor:
        """Accept the next token; return the logits after it."""


@dataclass(frozen=True)
class Ranked:
    """A token's log-probability and rank, and those of the likeliest at its place."""

    logprob: float
    rank: int
    top: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Step:
    """One token of an answer, or of the prompt; `ranked` if it was asked for."""

    token: int
    ranked: Ranked | None = None
    of_prompt: bool = False


Soft = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Job:
    """What one answer takes.

    Attributes:
        logprobs: how many of the likeliest tokens are told beside each chosen one; None: not even
            its own log-probability is.
        prompt_logprobs: the same for each token of the prompt.
        all_tokens: whether nothing ends the answer before `max_tokens`.
        soft: makes the embeddings of what in the prompt is no text: their places, and they
            themselves. It is called on the engine's thread, when it is this job's turn.
    """

    prompt: list[int]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    all_tokens: bool = False
    soft: Soft | None = None

    @property
    def needs_logits(self) -> bool:
        """Whether the engine has to tell more than its choices."""
        return bool(self.temperature) or not (self.logprobs is self.prompt_logprobs is None)


class Decoder:
    """Hands an engine from one job to the next."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._turn = asyncio.Lock()  # whoever waits longest is next
        self._thread = ThreadPoolExecutor(1, "engine")
        self._tps = 1 / TURN_S  # of the last turn

    async def run(self, job: Job) -> AsyncGenerator[list[Step]]:
        """Yield the answer's tokens as they come; closed early, the engine is soon free.

        The engine waits for no reader: a slow one finds all its tokens waiting.
        """
        turns: asyncio.Queue[list[Step] | Exception | None] = asyncio.Queue()
        pump = asyncio.create_task(self._pump(job, turns))
        try:
            while (turn := await turns.get()) is not None:
                if isinstance(turn, Exception):
                    raise turn
                yield turn
        finally:
            pump.cancel()
            await asyncio.wait({pump})

    def close(self) -> None:
        """Wait for the turn that is under way."""
        self._thread.shutdown(cancel_futures=True)

    async def _pump(self, job: Job, turns: asyncio.Queue[list[Step] | Exception | None]) -> None:
        loop = asyncio.get_running_loop()
        async with self._turn:
            source = self._steps(job)
            try:
                while True:
                    turn = await loop.run_in_executor(self._thread, next, source, None)
                    turns.put_nowait(turn)
                    if turn is None:
                        return
            except Exception as error:  # the engine's own: whoever asked is told
                turns.put_nowait(error)
            finally:
                with suppress(RuntimeError):  # the server is being shut down
                    # After the turn that may be under way, and before anybody else's.
                    self._thread.submit(source.close)

    def _steps(self, job: Job) -> Generator[list[Step]]:
        stream = getattr(self.engine, "stream", None)
        soft = {} if job.soft is None else {"soft": job.soft()}
        if job.needs_logits or (stream is None and not job.all_tokens):
            yield from self._with_logits(job, soft)
        elif job.max_tokens and stream is not None:
            begun = time.perf_counter()
            at_once = min(max(round(TURN_S * self._tps), 1), _MOST_AT_ONCE)
            for turn, tokens in enumerate(stream(job.prompt, job.max_tokens, at_once, **soft)):
                if turn:  # the first one reads the prompt
                    self._tps = len(tokens) / (time.perf_counter() - begun)
                yield [Step(token) for token in tokens]
                begun = time.perf_counter()
        elif job.max_tokens:
            yield [Step(token) for token in self.engine.generate(job.prompt, job.max_tokens)]

    def _with_logits(self, job: Job, soft: dict[str, Any]) -> Iterator[list[Step]]:
        if job.prompt_logprobs is None:
            logits = self.engine.begin(job.prompt, **soft)
        else:
            logits = self.engine.begin(job.prompt[:1])
            told = [Step(job.prompt[0], of_prompt=True)]
            for token in job.prompt[1:]:
                told.append(Step(token, _rank(logits, token, job.prompt_logprobs), of_prompt=True))
                logits = self.engine.reveal(token)
                if len(told) == _ROWS:
                    yield told
                    told = []
            yield told
        draw = torch.Generator().manual_seed(job.seed) if job.seed is not None else None
        for index in range(job.max_tokens):
            token = _choose(logits, job, draw)
            ranked = None if job.logprobs is None else _rank(logits, token, job.logprobs)
            yield [Step(token, ranked)]
            if index + 1 < job.max_tokens:
                logits = self.engine.reveal(token)


def _choose(logits: Tensor, job: Job, draw: torch.Generator | None) -> int:
    """Return a token: the likeliest, or one drawn from the likeliest ones."""
    if not job.temperature:
        return int(logits.argmax())
    scaled = logits / job.temperature
    if 0 < job.top_k < len(scaled):
        scaled[scaled < scaled.topk(job.top_k).values[-1]] = -torch.inf
    if job.top_p < 1.0:
        likely, order = scaled.softmax(-1).sort(descending=True)
        scaled[order[likely.cumsum(-1) - likely >= job.top_p]] = -torch.inf
    return int(scaled.softmax(-1).multinomial(1, generator=draw))


def _rank(logits: Tensor, token: int, count: int) -> Ranked:
    """One position at a time: a prompt's log-probabilities together would fill gigabytes."""
    normaliser = logits.logsumexp(-1)
    top: list[tuple[int, float]] = []
    if count:
        values, tokens = logits.topk(min(count, len(logits)))
        top = [*zip(tokens.tolist(), (values - normaliser).tolist(), strict=True)]
    own: Any = logits[token]
    return Ranked(float(own - normaliser), int((logits > own).sum()) + 1, top)
