"""The engine's two doors.

`generate` turns a prompt into tokens, as `stream` does bit by bit; it is what is timed. `begin` and
`reveal` hand over the logits of the next token before that token is told; it is what quality is
scored through. Both run the same model, one position after the other.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .assistant import Assistant
from .checkpoint import Checkpoint
from .config import ModelConfig, read_config
from .draft import Acceptance, Drafter, DraftModel, Pace, PromptLookup
from .levers import Levers, read_levers
from .model import Model
from .native import NativeModel
from .sequence import SoftTokens

DRAFTER = "drafter"  # the folder, beside a model's files, of what guesses for it


class Engine:
    """Greedy decoding of one sequence at a time."""

    def __init__(self, model: Model | NativeModel, drafter: Drafter | None = None) -> None:
        self.model, self._drafter = model, drafter
        self._acceptance = Acceptance()
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

    def acceptance(self) -> list[float]:
        """Return the share of guesses that came true so far, by their position after a token."""
        return self._acceptance.shares()

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
        kind, _, depth = self.model.levers.draft.partition("-")
        drafter = PromptLookup() if kind == "lookup" else self._drafter
        if drafter is None:
            raise ValueError(f"draft={self.model.levers.draft}: no drafter was loaded")
        pace = Pace(depth)
        drafter.begin(prompt)
        (last,) = self.model.choose(prompt, soft=soft)
        drafter.accept([last])
        yield [last]
        left, row = num_tokens - 1, 0
        while left > 0:
            guesses = drafter.guess(last, self._normed(row), min(pace.num_draft, left - 1))
            start = self.model.length
            choices = self.model.choose([last, *guesses], last_only=False)
            accepted = 0
            while accepted < len(guesses) and guesses[accepted] == choices[accepted]:
                accepted += 1
            self._acceptance.note(len(guesses), accepted)
            pace.learn(len(guesses), accepted)
            self.model.truncate(start + 1 + accepted)
            tokens = choices[: accepted + 1]
            drafter.accept(tokens)
            yield tokens
            last, row, left = tokens[-1], accepted, left - len(tokens)

    def _normed(self, row: int) -> Tensor:
        """Return what the newest token was chosen from [hidden]; nothing where no drafter asks."""
        return self.model.normed[row] if isinstance(self.model, Model) else torch.empty(0)


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
        model = _model_type(levers, device)(checkpoint, config, levers, max_context)
        return Engine(model, _drafter(model_dir / DRAFTER, model, config, device))


def _drafter(
    folder: Path, model: Model | NativeModel, whole: ModelConfig, device: str
) -> Assistant | DraftModel | None:
    """Load what guesses for a model, if its lever asks for one."""
    lever = f"draft={model.levers.draft}"
    kind = model.levers.draft.partition("-")[0]
    if kind in ("off", "lookup"):
        return None
    if not (folder / "config.json").is_file():
        raise ValueError(f"{lever}: the model's folder has no {DRAFTER}/")
    if kind == "assistant":
        if not isinstance(model, Model) or model.config.family != "gemma4":
            raise ValueError(f"{lever}: guesses for Gemma 4 alone")
        return Assistant(folder, model, whole)
    config = read_config(folder)
    if config.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"{lever}: its vocabulary of {config.vocab_size} isn't the model's of "
            f"{model.config.vocab_size}"
        )
    context = min(model.max_context, config.max_positions)
    checkpoint = Checkpoint(folder, getattr(torch, model.levers.dtype), device)
    same = replace(model.levers, draft="off", vocab="all", window="model", skip="none")
    try:
        return DraftModel(_model_type(same, device)(checkpoint, config, same, context))
    except ValueError:  # no code for its sizes in what the model is held in: plainly, then
        plain = Levers(dtype=same.dtype, cache="static", attention="grouped", fuse="qkv+gate-up")
        return DraftModel(Model(checkpoint, config, plain, context))


def _model_type(levers: Levers, device: str) -> type[Model | NativeModel]:
    if levers.step == "eager":
        return Model
    if device == "cpu":
        return NativeModel
    from .gpu.model import GpuModel  # needs Triton, which only GPU machines have

    return GpuModel
