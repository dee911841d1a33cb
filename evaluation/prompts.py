"""The prompts that engines are timed and scored on, as token ids.

48 prompts written for this project in `prompts.jsonl`: chat, code, maths, extraction and long
context, half public and half held out. Screening and testing see the public half; a champion is
confirmed on the other. Engines are timed on variations of them that a secret seed draws for each
run, and scored on documents that the reference continues from them.
"""

import hashlib
import json
import random
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
from .variation import vary

VARIATIONS = 12  # of each prompt, in one run
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
        return _random_prompts(workload, vocab_size, workload.num_prompts, 20260622)
    rows = _rows(workload)
    key = hashlib.sha256(_PROMPTS.read_bytes() + f"{model_dir}|{workload}".encode()).hexdigest()
    cached = make_dir(cache_dir() / "prompts") / f"{key[:16]}.json"
    with FileLock(cached.with_suffix(".lock")):
        if not cached.exists():
            _tokenize(rows, model_dir, cached)
    return _prompts(rows, cached)


def texts_of(workload: Workload) -> dict[str, str]:
    """Return the prompts' texts by id, for servers that apply the chat template themselves."""
    return {row["id"]: row["text"] for row in _rows(workload)}


def scored_per_split(workload: Workload, documents: int) -> int:
    """Return how many documents of a split are scored, of `documents` that are asked for."""
    if workload.prompts == "random-ids":
        return min(documents, workload.num_prompts)
    return min(documents, sum(row["split"] == Split.PUBLIC for row in _rows(workload)))


def fresh_prompts(
    workload: Workload, model_dir: Path, vocab_size: int, seed: int, folder: Path
) -> tuple[Prompt, ...]:
    """Return variations of the workload's prompts that `seed` draws, for timing.

    Args:
        seed: secret until the run is over; the same seed gives the same prompts after a restart.
        folder: of the run; no engine can see it.

    Raises:
        SlipstreamError: the model has no tokenizer or no chat template.
    """
    if workload.prompts == "random-ids":
        return _random_prompts(workload, vocab_size, VARIATIONS * workload.num_prompts, seed)
    rng = random.Random(seed)
    rows = [
        {**row, "id": f"{row['id']}~{number}", "text": vary(row["text"], rng)}
        for number in range(VARIATIONS)
        for row in _rows(workload)
    ]
    kept = folder / "prompts.json"
    if not kept.exists():
        _tokenize(rows, model_dir, kept)
    return _prompts(rows, kept)


def _rows(workload: Workload) -> list[dict[str, str]]:
    rows = [json.loads(line) for line in _PROMPTS.read_text().splitlines()]
    return [
        row
        for split in Split
        for row in [row for row in rows if row["split"] == split][: workload.num_prompts]
    ]


def _prompts(rows: list[dict[str, str]], tokenized: Path) -> tuple[Prompt, ...]:
    tokens: list[list[int]] = json.loads(tokenized.read_text())
    return tuple(
        Prompt(row["id"], row["category"], Split(row["split"]), tuple(ids))
        for row, ids in zip(rows, tokens, strict=True)
    )


def _random_prompts(
    workload: Workload, vocab_size: int, count: int, seed: int
) -> tuple[Prompt, ...]:
    """Return prompts of random ids: for models without a tokenizer, where only speed counts."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocab_size, (2, count, workload.prompt_tokens)).tolist()
    return tuple(
        Prompt(f"random-{split.value}-{index}", "random", split, tuple(tokens))
        for split, rows in zip(Split, ids, strict=True)
        for index, tokens in enumerate(rows)
    )


def _tokenize(rows: list[dict[str, str]], model_dir: Path, target: Path) -> None:
    """Apply the model's chat template to every text, in a process of its own."""
    source, partial = target.with_suffix(".jsonl"), target.with_suffix(".new")
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "slipstream.evaluation.tokenize_prompts"]
    done = subprocess.run(
        [*command, str(model_dir), str(source), str(partial)],
        capture_output=True,
        text=True,
        check=False,
    )
    source.unlink()
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise SlipstreamError(f"model in {model_dir}: can't tokenize prompts: {lines[-1]}")
    partial.rename(target)
