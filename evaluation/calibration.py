"""How far two honest computations of the same logits differ on this machine.

Floating point adds up in another order when the batch shape or the number of threads changes, so
two picks whose logits are closer than that noise are a tie. The noise is measured, not guessed:
the reference against itself, and plain bfloat16 decoding of the same checkpoint against it, one
token at a time, several at once, and on one thread.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from .child import ChildEngine
from .forcing import batched_logits, committed_logits

_Start = Callable[[str, int | None], ChildEngine]


@dataclass(frozen=True)
class LogitNoise:
    """Largest differences, in logits, of the gap between the two best tokens.

    Attributes:
        reference: the reference against itself.
        rounding: plain bfloat16 decoding against itself, in other batch shapes and on one thread;
            not less than `reference`.
        floor: plain bfloat16 decoding against the reference.
        num_positions: how many positions were compared.
    """

    reference: float
    rounding: float
    floor: float
    num_positions: int


def logit_noise(
    kept: Path,
    documents: Sequence[tuple[Sequence[int], Sequence[int]]],
    start: _Start,
) -> LogitNoise:
    """Return the noise that is on record in `kept`, or measure it.

    Args:
        documents: prompts with continuations.
        start: starts `transformers-fp32` or `transformers-bf16` with a number of threads or None.
    """
    with FileLock(kept.with_suffix(".lock")):
        if kept.exists():
            return LogitNoise(**json.loads(kept.read_text()))
        noise = _measure(documents, start)
        partial = kept.with_suffix(".new")
        partial.write_text(json.dumps(asdict(noise)))
        partial.rename(kept)
        return noise


def _measure(documents: Sequence[tuple[Sequence[int], Sequence[int]]], start: _Start) -> LogitNoise:
    gaps: dict[tuple[str, str], NDArray[np.float64]] = {}
    best: list[NDArray[np.int64]] = []
    for name in ("transformers-fp32", "transformers-bf16"):
        for threads in (None, 1):
            with start(name, threads) as engine:
                ways = {"thread": batched_logits}
                if threads is None:
                    ways = {"step": committed_logits, "batch": batched_logits}
                for way, decode in ways.items():
                    rows = [decode(engine, prompt, tokens) for prompt, tokens in documents]
                    if not best:  # the reference's two best tokens are what is compared everywhere
                        best = [np.argsort(row, axis=1)[:, -2:] for row in rows]
                    gaps[name, way] = np.concatenate(
                        [_gap(row, two) for row, two in zip(rows, best, strict=True)]
                    )

    def worst(name: str, against: str) -> float:
        truth = gaps[against, "step"]
        own = [gap for (engine, _), gap in gaps.items() if engine == name]
        return max(float(np.abs(gap - truth).max()) for gap in own)

    reference = worst("transformers-fp32", "transformers-fp32")
    return LogitNoise(
        reference=reference,
        rounding=max(reference, worst("transformers-bf16", "transformers-bf16")),
        floor=worst("transformers-bf16", "transformers-fp32"),
        num_positions=len(gaps["transformers-fp32", "step"]),
    )


def _gap(logits: NDArray[np.float32], two: NDArray[np.int64]) -> NDArray[np.float64]:
    rows = np.arange(len(logits))
    gap: NDArray[np.float64] = (logits[rows, two[:, 1]] - logits[rows, two[:, 0]]).astype(float)
    return gap
