"""A submission measured as the Fast Gemma Challenge measured it, and what that lacked.

Like the challenge: chats one at a time, not streamed, `ignore_eos`, four to warm up; tokens per
second are all output tokens over the time that their requests took, prefill included. Decoded
tokens are captured through integer prompts; perplexity comes from `prompt_logprobs`.

Unlike it: passes are repeated and the speed has an interval; captured tokens are rescored, by the
server itself and by the trusted reference, so one that decodes otherwise than it scores is seen;
the same tokens' log-probabilities are asked for on both ways.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from slipstream.evaluation.audits import audit_block
from slipstream.evaluation.calibration import LogitNoise
from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.pairs import Stage
from slipstream.evaluation.statistics import bootstrap

WARM_UPS = 4
_TIMEOUT_S = 900.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Timed:
    """One timed chat."""

    prompt: str
    repeat: int
    prompt_tokens: int
    output_tokens: int
    latency_ms: float


@dataclass(frozen=True)
class Decoded:
    """The tokens that a prompt was continued with."""

    prompt: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """A text that perplexity is measured on: `target_token_ids`, after `context_token_ids`."""

    id: str
    context_token_ids: tuple[int, ...]
    target_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Scored:
    """One record's negative log-likelihood, in nats."""

    id: str
    num_tokens: int
    nll: float

    @property
    def ppl(self) -> float:
        """Perplexity of this record alone."""
        return math.exp(self.nll / self.num_tokens)


@dataclass(frozen=True)
class Identity:
    """Captured tokens, rescored.

    Attributes:
        contradictions: tokens that the server itself would not have chosen, near-ties excepted.
        reference_matches: share of tokens that are the reference's choice, likewise.
        regret: nats per token that they fall short of the reference's choices.
        path_difference: the largest difference of a token's log-probability, decoded and scored.
    """

    num_tokens: int
    contradictions: int
    reference_matches: float
    regret: float
    path_difference: float


class Bench:
    """Asks one server.

    Args:
        http: with the server's /v1 as its base.
        name: the model's.
    """

    def __init__(self, http: httpx.Client, name: str, say: Say) -> None:
        self._http, self._name, self._say = http, name, say

    def time_chats(
        self, texts: Sequence[tuple[str, str]], num_tokens: int, repeats: int
    ) -> list[Timed]:
        """Time a chat for each (id, text), all of them `repeats` times.

        Raises:
            SlipstreamError: an answer of another length.
        """
        for index in range(WARM_UPS):
            self._chat(texts[index % len(texts)][1], num_tokens)
        found = []
        for repeat in range(repeats):
            for prompt, text in texts:
                begun = time.perf_counter()
                usage = self._chat(text, num_tokens)
                latency_ms = 1e3 * (time.perf_counter() - begun)
                if usage["completion_tokens"] != num_tokens:
                    raise SlipstreamError(
                        f"prompt {prompt}: {usage['completion_tokens']} tokens came instead of "
                        f"{num_tokens}, though ignore_eos was set"
                    )
                found.append(Timed(prompt, repeat, usage["prompt_tokens"], num_tokens, latency_ms))
                self._tell("timing", len(found), repeats * len(texts))
        return found

    def capture(
        self, prompts: Sequence[tuple[str, tuple[int, ...]]], num_tokens: int
    ) -> list[Decoded]:
        """Capture the tokens after each (id, token ids)."""
        found = []
        for prompt, tokens in prompts:
            choice = self._complete(tokens, max_tokens=num_tokens, ignore_eos=True)
            ids = tuple(choice["token_ids"])
            if len(ids) != num_tokens:
                raise SlipstreamError(f"prompt {prompt}: {len(ids)} tokens instead of {num_tokens}")
            found.append(Decoded(prompt, tokens, ids))
            self._tell("capturing", len(found), len(prompts))
        return found

    def perplexity(self, records: Sequence[Record]) -> Iterator[Scored]:
        """Score each record's target."""
        for index, record in enumerate(records):
            own = self._logprobs(record.context_token_ids, record.target_token_ids)
            yield Scored(record.id, len(own), -sum(logprob for logprob, _ in own))
            self._tell("scoring", index + 1, len(records))

    def identity(
        self,
        decoded: Sequence[Decoded],
        reference: Callable[[Sequence[int], Sequence[int]], np.ndarray[Any, Any]],
        noise: LogitNoise,
    ) -> Identity:
        """Rescore captured tokens.

        Args:
            reference: (prompt, tokens) → the reference's logits before each, [tokens, vocabulary].
            noise: how far honest computations differ on this machine.
        """
        contradictions = matches = count = 0
        regret = difference = 0.0
        for index, one in enumerate(decoded):
            tokens = one.token_ids
            own = self._logprobs(one.prompt_token_ids, tokens)
            contradictions += sum(best - logprob > noise.rounding for logprob, best in own)
            again = self._complete(
                one.prompt_token_ids, max_tokens=len(tokens), ignore_eos=True, logprobs=0
            )
            told = again["logprobs"]["token_logprobs"]
            same = _common(tokens, again["token_ids"])
            contradictions += same < len(tokens)
            pairs = zip(told[:same], own[:same], strict=True)
            difference = max(difference, *(abs(a - b) for a, (b, _) in pairs), 0.0)
            rows = reference(one.prompt_token_ids, tokens)
            audit = audit_block(Stage.CONFIRM, index, 0, tokens, rows, rows, noise)
            matches, regret = matches + audit.matches, regret + audit.regret
            count += len(tokens)
            self._tell("rescoring", index + 1, len(decoded))
        return Identity(count, contradictions, matches / count, regret / count, difference)

    def _tell(self, what: str, done: int, total: int) -> None:
        if done % 10 == 0 or done == total:
            self._say(f"{what} {done}/{total}")

    def _chat(self, text: str, num_tokens: int) -> dict[str, int]:
        answer = self._post(
            "chat/completions",
            messages=[{"role": "user", "content": text}],
            max_tokens=num_tokens,
            temperature=0,
            ignore_eos=True,
        )
        usage: dict[str, int] = answer["usage"]
        return usage

    def _complete(self, prompt: Sequence[int], **fields: Any) -> dict[str, Any]:
        answer = self._post(
            "completions",
            prompt=list(prompt),
            temperature=0,
            add_special_tokens=False,
            return_token_ids=True,
            **fields,
        )
        choice: dict[str, Any] = answer["choices"][0]
        return choice

    def _logprobs(self, context: Sequence[int], target: Sequence[int]) -> list[tuple[float, float]]:
        """Return (its own, the best) log-probability at each token of the target."""
        tokens = [*context, *target]
        entries = self._complete(tokens, max_tokens=1, prompt_logprobs=1)["prompt_logprobs"]
        if len(entries) != len(tokens):
            raise SlipstreamError(f"{len(entries)} prompt_logprobs for {len(tokens)} tokens")
        found = []
        for token, entry in zip(target, entries[len(context) :], strict=True):
            own = float(entry[str(token)]["logprob"])
            found.append((own, max(float(one["logprob"]) for one in entry.values())))
        return found

    def _post(self, path: str, **fields: Any) -> dict[str, Any]:
        try:
            answer = self._http.post(path, json={"model": self._name, **fields}, timeout=_TIMEOUT_S)
        except httpx.HTTPError as error:
            raise SlipstreamError(f"the server: {type(error).__name__} at {path}") from error
        if answer.status_code != httpx.codes.OK:
            raise SlipstreamError(
                f"the server: {answer.status_code} at {path}: {answer.text[:300]}"
            )
        found: dict[str, Any] = answer.json()
        return found


def speed(timed: Sequence[Timed]) -> tuple[float, float, float]:
    """Return output tokens per second, and its 95 % interval bootstrapped over requests."""
    rows = np.array([[one.output_tokens, one.latency_ms / 1e3] for one in timed])
    found = bootstrap(rows, lambda sums: sums[:, 0] / sums[:, 1])
    tokens, seconds = rows.sum(axis=0)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(tokens / seconds), float(low), float(high)


def overall(scored: Sequence[Scored]) -> float:
    """Return exp(Σ NLL / Σ tokens)."""
    return math.exp(sum(one.nll for one in scored) / sum(one.num_tokens for one in scored))


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common beginning."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first)
    )
