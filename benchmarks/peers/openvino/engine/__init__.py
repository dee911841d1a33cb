"""OpenVINO GenAI behind the worker's protocol: greedy decoding of a GGUF on the CPU."""

import json
import os
from pathlib import Path

import numpy as np
import openvino
import openvino_genai


class OpenVinoEngine:
    """One sequence at a time through `LLMPipeline`."""

    def __init__(self, gguf: Path, vocab_size: int) -> None:
        threads = len(os.sched_getaffinity(0))
        self._pipeline = openvino_genai.LLMPipeline(str(gguf), "CPU", INFERENCE_NUM_THREADS=threads)
        self.vocab_size = vocab_size

    def generate(self, prompt: list[int], num_tokens: int) -> list[int]:
        """Return exactly `num_tokens` greedy tokens after `prompt`."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = num_tokens, True, False
        inputs = openvino.Tensor(np.array([prompt], dtype=np.int64))
        tokens: list[int] = self._pipeline.generate(inputs, config).tokens[0]
        return tokens


def load(tree: Path, model_dir: Path, max_context: int) -> OpenVinoEngine:  # noqa: ARG001
    """Load the GGUF in `model_dir`."""
    (gguf,) = model_dir.glob("*.gguf")
    sizes = json.loads((model_dir / "config.json").read_text())
    return OpenVinoEngine(gguf, sizes["vocab_size"])
