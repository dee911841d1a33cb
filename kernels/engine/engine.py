"""The engine's two doors.

`generate` turns a prompt into tokens, as `stream` does bit by bit; it is what is timed. `begin` and
`reveal` hand over the logits of the next token before that token is told; it is what quality is
scored through. Both run the same model, one position after the other.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .config import read_config
from .draft import PromptLookup
from .levers import Levers, read_levers
from .model import Model
from .native import NativeModel
from .sequence import SoftTokens


class Engine:
    """Greedy decoding of one sequence at a time."""

    def __init__(self, model: Model | NativeModel) -> None:
        self.model = model
        self.vocab_size = model.config.vocab_size

    @property
    def takes_soft_tokens(self) -> bool:
        """Whether a prompt may have embeddings in it: of images, of sounds."""
        return isinstance(self.model, Model)

    def begin(self, prompt: list[int], soft: SoftTokens | None = None) -> Tensor:
        """Read the prompt and return the next token's logits [vocab_size], float32, on the CPU.

        Args:
            soft: embeddings instead of those of some of the prompt's tokens.
        """
        self.model.reset()
        with torch.inference_mode():
            return self.model(prompt, soft=soft)[0].float().cpu()

    def reveal(self, token: int) -> Tensor:
        """Accept `token` as the next one and return the logits [vocab_size] after it, likewise."""
        with torch.inference_mode():
            return self.model([token])[0].float().cpu()

    def generate(self, prompt: list[int], num_tokens: int) -> list[int]:
        """Return exactly `num_tokens` greedy tokens after `prompt`.

        Raises:
            ValueError: an empty prompt, a token outside the vocabulary, or too long a sequence.
        """
        return [token for some in self.stream(prompt, num_tokens, num_tokens) for token in some]

    def stream(
        self, prompt: list[int], num_tokens: int, at_once: int, soft: SoftTokens | None = None
    ) -> Iterator[list[int]]:
        """Yield the same tokens, the first one alone, then at most `at_once` at a time.

        Args:
            soft: embeddings instead of those of some of the prompt's tokens.

        Raises:
            ValueError: as `generate` does, before the first token.
        """
        # A verified draft may reach past the end before it is cut: check the real length here.
        if len(prompt) + num_tokens > self.model.max_context:
            raise ValueError(
                f"prompt of {len(prompt)} and {num_tokens} new tokens exceed the context of "
                f"{self.model.max_context}"
            )
        self.model.reset()
        if self.model.levers.draft == "off":
            yield from self._plain(prompt, num_tokens, at_once, soft)
        else:
            yield from self._drafted(prompt, num_tokens, soft)

    def profile(self, prompt: list[int], num_tokens: int) -> dict[str, float]:
        """Return seconds per decoded token, by component, of plain decoding after `prompt`.

        Raises:
            ValueError: fewer than two tokens: the first one is the prompt's.
        """
        if num_tokens < 2:
            raise ValueError(f"a profile of {num_tokens} tokens: needs at least 2")
        self.model.reset()
        with torch.inference_mode():
            (first,) = self.model.choose(prompt)
            times = self.model.profile(first, num_tokens - 1)
        return {name: seconds / (num_tokens - 1) for name, seconds in times.items()}

    @torch.inference_mode()
    def _plain(
        self, prompt: list[int], num_tokens: int, at_once: int, soft: SoftTokens | None
    ) -> Iterator[list[int]]:
        tokens = self.model.choose(prompt, soft=soft)
        yield tokens
        left = num_tokens - 1
        while left > 0:
            tokens = self.model.decode(tokens[-1], min(left, at_once))
            yield tokens
            left -= len(tokens)

    @torch.inference_mode()
    def _drafted(
        self, prompt: list[int], num_tokens: int, soft: SoftTokens | None
    ) -> Iterator[list[int]]:
        lookup = PromptLookup(self.model.levers.draft)
        for token in prompt:
            lookup.append(token)
        (last,) = self.model.choose(prompt, soft=soft)
        lookup.append(last)
        yield [last]
        left = num_tokens - 1
        while left > 0:
            guesses = lookup.guess()[: left - 1]
            start = self.model.length
            choices = self.model.choose([last, *guesses], last_only=False)
            accepted = 0
            while accepted < len(guesses) and guesses[accepted] == choices[accepted]:
                accepted += 1
            lookup.learn(len(guesses), accepted)
            self.model.truncate(start + 1 + accepted)
            tokens = choices[: accepted + 1]
            for token in tokens:
                lookup.append(token)
            yield tokens
            last, left = tokens[-1], left - len(tokens)


def load(tree: Path, model_dir: Path, max_context: int) -> Engine:
    """Load the checkpoint in `model_dir` with the levers in `tree/levers.json`.

    Everything lies on the GPU where one can be seen: the sandbox shows it to engines of challenges
    that use it, and to no others.

    Raises:
        ValueError: a lever, family or size that this engine can't serve.
    """
    levers: Levers = read_levers(tree / "levers.json")
    available = len(os.sched_getaffinity(0))
    torch.set_num_threads(available if levers.threads == "all" else int(levers.threads))
    config = read_config(model_dir)
    max_context = min(max_context, config.max_positions)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = Checkpoint(model_dir, getattr(torch, levers.dtype), device)
    with torch.inference_mode():
        return Engine(_model_type(levers, device)(checkpoint, config, levers, max_context))


def _model_type(levers: Levers, device: str) -> type[Model | NativeModel]:
    if levers.step == "eager":
        return Model
    if device == "cpu":
        return NativeModel
    from .gpu.model import GpuModel  # needs Triton, which only GPU machines have

    return GpuModel
