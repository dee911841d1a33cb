"""OpenAI's shapes of answers, whole and in pieces."""

import json
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .decoding import Step
from .fields import Completion, Sampling

DONE = b"data: [DONE]\n\n"


def event(body: dict[str, Any]) -> bytes:
    """Return a server-sent event, in ASCII: some clients end lines at U+2028 too."""
    return b"data: " + json.dumps(body).encode() + b"\n\n"


@dataclass
class Piece:
    """Some of an answer: what came since the last piece.

    Attributes:
        finish: why the answer ends with it: stop or length; None: it goes on.
        of_prompt: the prompt's tokens, if their log-probabilities were asked for.
    """

    text: str = ""
    steps: list[Step] = field(default_factory=list)
    finish: str | None = None
    of_prompt: list[Step] = field(default_factory=list)

    @classmethod
    def of(cls, pieces: Sequence["Piece"]) -> "Piece":
        """Return all of an answer as one piece."""
        return cls(
            "".join(piece.text for piece in pieces),
            [step for piece in pieces for step in piece.steps],
            pieces[-1].finish if pieces else "length",
            [step for piece in pieces for step in piece.of_prompt],
        )


class Writer:
    """Writes the answers to one request.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, request: Sampling, name: str, tokenizer: Any) -> None:
        self._request, self._name, self._tokenizer = request, name, tokenizer
        self.chat = not isinstance(request, Completion)
        self._id = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._told: Counter[int] = Counter()  # characters of each answer's tokens so far

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """Return a whole answer."""
        return {**self._frame(chunk=False), "choices": choices, "usage": usage}

    def chunk(
        self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None
    ) -> dict[str, Any]:
        """Return a piece of a streamed answer."""
        body = {**self._frame(chunk=True), "choices": choices}
        return {**body, "usage": usage} if self._request.include_usage else body

    def choice(
        self, index: int, piece: Piece, prompt: list[int], *, first: bool, chunk: bool
    ) -> dict[str, Any]:
        """Return one answer, or what is new of it."""
        choice: dict[str, Any] = {"index": index, "finish_reason": piece.finish, "logprobs": None}
        if not self.chat:
            choice["text"] = piece.text
        elif chunk:
            choice["delta"] = {"role": "assistant"} if first else {}
            choice["delta"]["content"] = piece.text
        else:
            choice["message"] = {"role": "assistant", "content": piece.text, "refusal": None}
        if any(step.ranked for step in piece.steps):
            choice["logprobs"] = self._spoken(piece) if self.chat else self._listed(piece, index)
        if self._request.return_token_ids:
            choice["token_ids"] = [step.token for step in piece.steps]
            if first:
                choice["prompt_token_ids"] = prompt
        if self._request.prompt_logprobs is not None and piece.of_prompt:
            choice["prompt_logprobs"] = [self._by_token(step) for step in piece.of_prompt]
        return choice

    def _frame(self, *, chunk: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._name}

    def _text(self, token: int) -> str:
        text: str = self._tokenizer.decode([token])
        return text

    def _listed(self, piece: Piece, index: int) -> dict[str, Any]:
        """Return the log-probabilities of /v1/completions."""
        texts, offsets = [self._text(step.token) for step in piece.steps], []
        for text in texts:
            offsets.append(self._told[index])
            self._told[index] += len(text)
        ranked = [step.ranked for step in piece.steps]
        return {
            "tokens": texts,
            "token_logprobs": [one.logprob for one in ranked if one],
            "top_logprobs": [
                {
                    self._text(token): logprob
                    for token, logprob in ((step.token, step.ranked.logprob), *step.ranked.top)
                }
                for step in piece.steps
                if step.ranked
            ],
            "text_offset": offsets,
        }

    def _spoken(self, piece: Piece) -> dict[str, Any]:
        """Return the log-probabilities of /v1/chat/completions."""

        def entry(token: int, logprob: float) -> dict[str, Any]:
            text = self._text(token)
            return {"token": text, "logprob": logprob, "bytes": [*text.encode()]}

        return {
            "content": [
                {
                    **entry(step.token, step.ranked.logprob),
                    "top_logprobs": [entry(*one) for one in step.ranked.top],
                }
                for step in piece.steps
                if step.ranked
            ]
        }

    def _by_token(self, step: Step) -> dict[str, Any] | None:
        """Return vLLM's shape: token id to log-probability; nothing for the first token."""
        if step.ranked is None:
            return None
        found = dict(step.ranked.top)
        found[step.token] = step.ranked.logprob
        ranks = {token: rank for rank, (token, _) in enumerate(step.ranked.top, 1)}
        ranks[step.token] = step.ranked.rank
        return {
            str(token): {
                "logprob": logprob, "rank": ranks[token], "decoded_token": self._text(token)
            }
            for token, logprob in found.items()
        }  # fmt: skip


def usage_of(num_prompt: int, num_answer: int) -> dict[str, int]:
    """Return what an answer took, in tokens."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_answer,
        "total_tokens": num_prompt + num_answer,
    }
