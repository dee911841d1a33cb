"""The prompts that engines are timed and scored on, as token ids.

48 prompts written for this project in `prompts.jsonl`: chat, code, maths, extraction and long
context, half public and half held out. Screening and testing see the public half; a champion is
confirmed on the other.
"""

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from filelock import FileLock

from .challenge import Workload
from .errors import SlipstreamError
from .home import cache_dir, make_dir

_PROMPTS = Path(__file__).resolve().with_name("prompts.jsonl")


class Split(StrEnum):
    """Which half of the prompts."""

    PUBLIC = "public"
    HELD_OUT = "held-out"


@dataclass(frozen=True)
class Prompt:
    """One prompt as the engine gets it."""

    id: str
    category: str
    split: Split
    tokens: tuple[int, ...]


def load_prompts(workload: Workload, model_dir: Path, vocab_size: int) -> tuple[Prompt, ...]:
    """Return the workload's prompts for a model, `num_prompts` of each split.

    Raises:
        SlipstreamError: the model has no tokenizer or no chat template.
    """
    if workload.prompts == "random-ids":
        return _random_prompts(workload, vocab_size)
    rows = [json.loads(line) for line in _PROMPTS.read_text().splitlines()]
    prompts = tuple(
        Prompt(row["id"], row["category"], Split(row["split"]), tuple(tokens))
        for row, tokens in zip(rows, _tokenize(model_dir), strict=True)
    )
    chosen = [
        [prompt for prompt in prompts if prompt.split is split][: workload.num_prompts]
        for split in Split
    ]
    return (*chosen[0], *chosen[1])


def _random_prompts(workload: Workload, vocab_size: int) -> tuple[Prompt, ...]:
    """Return prompts of random ids: for models without a tokenizer, where only speed counts."""
    rng = np.random.default_rng(20260622)
    shape = (2, workload.num_prompts, workload.prompt_tokens)
    ids = rng.integers(0, vocab_size, shape).tolist()
    return tuple(
        Prompt(f"random-{split.value}-{index}", "random", split, tuple(tokens))
        for split, rows in zip(Split, ids, strict=True)
        for index, tokens in enumerate(rows)
    )


def _tokenize(model_dir: Path) -> list[list[int]]:
    """Apply the model's chat template to every prompt; kept in the cache."""
    key = hashlib.sha256(_PROMPTS.read_bytes() + str(model_dir).encode()).hexdigest()[:16]
    cached = make_dir(cache_dir() / "prompts") / f"{key}.json"
    with FileLock(cached.with_suffix(".lock")):
        if not cached.exists():
            partial = cached.with_suffix(".new")
            command = [sys.executable, "-m", "slipstream.evaluation.tokenize_prompts"]
            done = subprocess.run(
                [*command, str(model_dir), str(_PROMPTS), str(partial)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                lines = done.stderr.strip().splitlines() or ["no message"]
                raise SlipstreamError(f"model in {model_dir}: can't tokenize prompts: {lines[-1]}")
            partial.rename(cached)
    tokens: list[list[int]] = json.loads(cached.read_text())
    return tokens
