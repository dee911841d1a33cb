"""The baseline: `transformers` `generate`, behind the same two doors as every engine.

In `levers.json`'s dtype bfloat16 it is what a researcher has before slipstream starts; in float32
it is the trusted reference. Greedy, default key/value cache, default attention.
"""

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging


class TransformersEngine:
    """Greedy decoding of one sequence at a time with a transformers model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.device = model, model.device
        self.vocab_size: int = model.config.vocab_size
        self._cache: object = None

    def generate(self, prompt: list[int], num_tokens: int) -> list[int]:
        """Return exactly `num_tokens` greedy tokens after `prompt`; no token ends it early."""
        output = self.model.generate(
            torch.tensor([prompt], device=self.device),
            max_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        tokens: list[int] = output[0, len(prompt) :].tolist()
        return tokens

    def begin(self, prompt: list[int]) -> Tensor:
        """Read the prompt and return the next token's logits [vocab_size], float32."""
        self._cache = None
        return self._forward(prompt, 1)[0]

    def reveal(self, token: int) -> Tensor:
        """Accept `token` as the next one and return the logits [vocab_size] after it."""
        return self._forward([token], 1)[0]

    def extend(self, tokens: list[int]) -> Tensor:
        """Accept several tokens and return the logits after each, [len(tokens), vocab_size]."""
        return self._forward(tokens, len(tokens))

    def _forward(self, tokens: list[int], num_logits: int) -> Tensor:
        with torch.inference_mode():
            out = self.model(
                torch.tensor([tokens], device=self.device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=num_logits,
            )
        self._cache = out.past_key_values
        logits: Tensor = out.logits[0]
        return logits.float().cpu()


def load(tree: Path, model_dir: Path, max_context: int) -> TransformersEngine:  # noqa: ARG001
    """Load the checkpoint in the dtype and with the threads that `levers.json` names.

    On the GPU where one is in sight, as every engine.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    levers = json.loads((tree / "levers.json").read_text())
    if levers["threads"]:
        torch.set_num_threads(levers["threads"])
    dtype = getattr(torch, levers["dtype"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if (model_dir / "random.json").exists():  # sizes alone: weights are made where they run
        torch.manual_seed(json.loads((model_dir / "random.json").read_text())["seed"])
        with device:
            config = AutoConfig.from_pretrained(model_dir)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype).to(device)
    model.generation_config.eos_token_id = None
    return TransformersEngine(model.eval())
