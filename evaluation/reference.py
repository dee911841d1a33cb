"""The trusted reference: the same checkpoint in transformers, in its own process.

It writes the ground truth, continuations sampled at temperature 1 (public ones from a fixed seed,
held-out ones from a secret one), and keeps the logits that it had before each token. Both come from
one pass through the scoring door, so a variant is compared position by position with what the
reference really computed. Made once per model and settings, then read from the cache.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from .baselines import baseline_tree
from .calibration import LogitNoise, logit_noise
from .challenge import Quality
from .child import ChildEngine
from .engine import Engine
from .forcing import batched_logits, committed_logits
from .gates import DocumentScore, score_document
from .hardware import detect_hardware
from .home import cache_dir, make_dir
from .prompts import Prompt, Split
from .sandbox import AnySandbox
from .secret import held_out_seed

_NOISE_DOCUMENTS = 4


@dataclass(frozen=True)
class Document:
    """A prompt, the continuation that the reference sampled, and where its logits lie."""

    prompt: Prompt
    tokens: tuple[int, ...]
    logits_path: Path

    def logits(self) -> NDArray[np.float32]:
        """Return the reference's logits before each token, [num_tokens, vocab_size]."""
        loaded: NDArray[np.float32] = np.load(self.logits_path)
        return loaded


def _silent(done: int, total: int) -> None:
    """Report no progress."""


class Reference:
    """Documents of one model, made on first use."""

    def __init__(
        self,
        model_dir: Path,
        quality: Quality,
        *,
        max_context: int,
        sandbox: AnySandbox | None = None,
        salt: str = "",
    ) -> None:
        self._model_dir, self._quality, self._max_context = model_dir, quality, max_context
        self._sandbox, self._salt = sandbox, salt
        key = f"{model_dir}|{quality.reference_dtype}|{quality.continuation_tokens}"
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        self._folder = make_dir(cache_dir() / "reference" / name)
        self._engine: ChildEngine | None = None

    def documents(
        self, prompts: Sequence[Prompt], say: Callable[[int, int], None] = _silent
    ) -> tuple[Document, ...]:
        """Return one document per prompt, at most as many as the challenge scores.

        Args:
            prompts: prompts of one split.
            say: told how many of how many are made, when some have to be.
        """
        chosen = prompts[: self._quality.documents]
        with FileLock(self._folder / ".lock"):
            missing = [prompt for prompt in chosen if not self._tokens_path(prompt).exists()]
            if missing:
                self._make(missing, say)
        return tuple(
            Document(
                prompt,
                tuple(json.loads(self._tokens_path(prompt).read_text())),
                self._logits_path(prompt),
            )
            for prompt in chosen
        )

    def logits(self, prompt: Sequence[int], tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the reference's logits before each of `tokens`, [len(tokens), vocab_size]."""
        return batched_logits(self._running(), prompt, tokens)

    def noise(self, prompts: Sequence[Prompt], say: Callable[[str], None]) -> LogitNoise:
        """Return how far honest computations differ here; measured once per machine."""
        documents = [
            (d.prompt.tokens, d.tokens) for d in self.documents(prompts)[:_NOISE_DOCUMENTS]
        ]

        def start(name: str, threads: int | None) -> ChildEngine:
            count = f"{threads or 'all'} threads"
            say(f"noise of the logits on this machine, once: {name}, {count}")
            return self._start(name, threads)

        kept = self._folder / f"logit-noise-{detect_hardware().id}.json"
        return logit_noise(kept, documents, start)

    def close(self) -> None:
        """Stop the reference's process, if it runs."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _running(self) -> ChildEngine:
        if self._engine is None:
            short = {"float32": "fp32", "bfloat16": "bf16"}[self._quality.reference_dtype]
            self._engine = self._start(f"transformers-{short}", None)
        return self._engine

    def _start(self, name: str, threads: int | None) -> ChildEngine:
        return ChildEngine(
            baseline_tree(name, self._folder, threads),
            self._model_dir,
            max_context=self._max_context,
            sandbox=self._sandbox,
        )

    def _make(self, prompts: Sequence[Prompt], say: Callable[[int, int], None]) -> None:
        engine = self._running()
        try:
            for done, prompt in enumerate(prompts):
                say(done, len(prompts))
                tokens, logits = self._sample(engine, prompt)
                np.save(self._logits_path(prompt), logits)
                # The tokens' file is written last: where it is, the logits are whole.
                partial = self._tokens_path(prompt).with_suffix(".new")
                partial.write_text(json.dumps(tokens))
                partial.rename(self._tokens_path(prompt))
            say(len(prompts), len(prompts))
        finally:
            self.close()

    def _sample(self, engine: Engine, prompt: Prompt) -> tuple[list[int], NDArray[np.float32]]:
        digest = hashlib.sha256(f"{self._seed(prompt.split)}|{prompt.id}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        tokens: list[int] = []
        rows: list[NDArray[np.float32]] = []
        logits = engine.begin(prompt.tokens)
        while True:
            rows.append(logits)
            # Gumbel-max: arg-max of logits plus Gumbel noise is a sample at temperature 1.
            tokens.append(int((logits + rng.gumbel(size=logits.shape)).argmax()))
            if len(tokens) == self._quality.continuation_tokens:
                return tokens, np.stack(rows)
            logits = engine.reveal(tokens[-1])

    def _seed(self, split: Split) -> str:
        """Return the seed of a split's ground truth: fixed in public, secret if held out."""
        if split is Split.PUBLIC or self._quality.held_out == "fixed":
            return str(self._quality.seed)
        return held_out_seed(self._salt)

    def _name(self, prompt: Prompt) -> str:
        text = f"{prompt.tokens}|{self._seed(prompt.split)}"
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{prompt.id}-{digest}"

    def _tokens_path(self, prompt: Prompt) -> Path:
        return self._folder / f"{self._name(prompt)}.json"

    def _logits_path(self, prompt: Prompt) -> Path:
        return self._folder / f"{self._name(prompt)}.npy"


def score(engine: Engine, document: Document) -> DocumentScore:
    """Score an engine on one document: it commits its logits before each token is revealed."""
    logits = committed_logits(engine, document.prompt.tokens, document.tokens)
    return score_document(document.prompt.id, document.tokens, logits, document.logits())
