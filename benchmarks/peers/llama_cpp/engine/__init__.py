"""llama.cpp behind the worker's protocol: greedy decoding of a GGUF on the CPU."""

import os
from pathlib import Path

import llama_cpp
import numpy as np


class LlamaCppEngine:
    """One sequence at a time through `llama_decode`; the arg-max is taken over its logits."""

    def __init__(self, gguf: Path, max_context: int) -> None:
        threads = len(os.sched_getaffinity(0))
        self._llama = llama_cpp.Llama(
            str(gguf),
            n_ctx=max_context,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
        self.vocab_size = self._llama.n_vocab()

    def generate(self, prompt: list[int], num_tokens: int) -> list[int]:
        """Return exactly `num_tokens` greedy tokens after `prompt`."""
        self._llama.reset()
        pending, tokens = prompt, []
        context = self._llama.ctx
        while len(tokens) < num_tokens:
            self._llama.eval(pending)
            logits = np.ctypeslib.as_array(
                llama_cpp.llama_get_logits_ith(context, -1), (self.vocab_size,)
            )
            tokens.append(int(logits.argmax()))
            pending = tokens[-1:]
        return tokens


def load(tree: Path, model_dir: Path, max_context: int) -> LlamaCppEngine:  # noqa: ARG001
    """Load the GGUF in `model_dir`."""
    (gguf,) = model_dir.glob("*.gguf")
    return LlamaCppEngine(gguf, max_context)
