"""A causal language model of transformers behind the challenge's contract, decoded greedily."""

import os
from typing import Any

import torch
from contract import num_threads, serve, settings
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, StaticCache

_MAX_CONTEXT = int(os.environ.get("MAX_CONTEXT", "4096"))


class Transformers:
    """A model and a tokenizer as `Backend`."""

    def __init__(self, levers: dict[str, str], model: str) -> None:
        torch.set_num_threads(num_threads(levers["threads"]))
        torch.set_grad_enabled(False)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._model = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=getattr(torch, levers["dtype"]),
            attn_implementation=levers["attention"],
        ).to(device)
        self._static = levers["cache"] == "static"
        self._forward = self._model.forward
        if levers["compile"] == "on":
            self._forward = torch.compile(self._model.forward, dynamic=not self._static)
        self._past: DynamicCache | StaticCache | None = None
        self._seen: list[int] = []

    def generate(self, prompt: list[int], num_tokens: int, ignore_eos: bool) -> list[int]:
        """Return greedy tokens."""
        ends = set() if ignore_eos else self._ends()
        tokens = [int(self._after(prompt).argmax())]
        while len(tokens) < num_tokens and tokens[-1] not in ends:
            tokens.append(int(self._after(prompt + tokens).argmax()))
        return tokens

    def logprobs(self, prompt: list[int], count: int) -> list[tuple[int, float]]:
        """Return the log-probabilities of the likeliest tokens, in order."""
        found = self._after(prompt).float().log_softmax(-1)
        values, ids = found.topk(min(count, len(found)))
        return list(zip(ids.tolist(), values.tolist(), strict=True))

    def encode(self, text: str, special: bool) -> list[int]:
        """Return the tokens of a text."""
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return tokens

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens."""
        return str(self._tokenizer.decode(tokens))

    def chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """Return the tokens of a conversation."""
        found = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True
        )
        tokens: list[int] = found["input_ids"]
        return tokens

    def _after(self, tokens: list[int]) -> torch.Tensor:
        """Return the logits after these tokens; what was computed of their beginning is kept."""
        known = len(self._seen)
        if self._past is None or tokens[:known] != self._seen or len(tokens) == known:
            self._past, known = self._new_cache(), 0
        ids = torch.tensor([tokens[known:]], device=self._model.device)
        positions = torch.arange(known, len(tokens), device=self._model.device)
        answer = self._forward(
            input_ids=ids,
            position_ids=positions[None],
            past_key_values=self._past,
            use_cache=True,
            logits_to_keep=1,
        )
        self._seen = list(tokens)
        logits: torch.Tensor = answer.logits[0, -1]
        return logits

    def _new_cache(self) -> DynamicCache | StaticCache:
        if self._static:
            return StaticCache(config=self._model.config, max_cache_len=_MAX_CONTEXT)
        return DynamicCache(config=self._model.config)

    def _ends(self) -> set[int]:
        found = self._model.generation_config.eos_token_id
        return set(found if isinstance(found, list) else [found])


if __name__ == "__main__":
    serve(Transformers(settings(), os.environ["MODEL_ID"]))
