"""One chat model in one role: each call is paid for beforehand, kept on tape, and tried again.

The clients are LangChain's; retries are our own, because a run has to say what it waits for, stop
at Ctrl-C, and never wait longer than it has time.
"""

import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.messages.ai import add_ai_message_chunks

from slipstream.evaluation.errors import OutOfMoneyError, OutOfTimeError, SlipstreamError
from slipstream.memory.costs import Cost

from .clients import Answer, answer_of, is_local, make_client, plain, stream
from .prices import Usage, price_of
from .session import Session
from .specs import ModelSpec
from .trouble import Trouble, diagnose

_ATTEMPTS = 6
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_LEAST_TOKENS = 1024  # a budget that allows less than this for an answer allows none


class TooLongError(Exception):
    """A conversation doesn't fit into the model's context any more."""


class Chat:
    """A chat model that is called for one role of one run.

    Args:
        max_tokens: of an answer.
    """

    def __init__(
        self, spec: ModelSpec, role: str, session: Session, *, max_tokens: int = 8000
    ) -> None:
        self.spec, self.role, self.session = spec, role, session
        self._max_tokens = max_tokens
        self._price = price_of(f"{spec.provider}:{spec.name}", local=is_local(spec))
        limited = session.purse.limit is not None and not session.cassette.replaying
        if self._price is None and limited:
            raise SlipstreamError(
                f"model {spec}: no price is known, so --usd can't hold; add it to a prices.toml "
                "(SLIPSTREAM_PRICES=FILE; agents/prices.toml shows the form)"
            )
        self._client: BaseChatModel | None = None

    def ask(
        self,
        messages: Sequence[BaseMessage],
        tools: Sequence[dict[str, Any]],
        *,
        occasion: str,
        experiment: str | None = None,
        force: str | None = None,
    ) -> Answer:
        """Return the model's next answer.

        Args:
            tools: what it may use, as JSON schemas with a title and a description.
            occasion: which call of the run this is; the same one if the run is resumed.
            force: the one tool that it has to use.

        Raises:
            OutOfMoneyError: the budget doesn't cover the call.
            OutOfTimeError: a wait that the provider asks for would outlast the run.
            TooLongError: the conversation exceeds the model's context.
            SlipstreamError: the provider refuses, or doesn't answer after several tries.
        """
        request = {
            "model": str(self.spec),
            "messages": [plain(message) for message in messages],
            "tools": list(tools),
            "force": force,
        }

        def ask() -> dict[str, Any]:
            try:
                return asdict(self._ask(messages, tools, occasion, experiment, force))
            except (OutOfMoneyError, TooLongError) as error:
                told = {"kind": type(error).__name__, "reason": str(error)}
                tape.note(f"unasked {self.role} {occasion}", told)
                raise

        tape = self.session.cassette
        if tape.replaying:
            if told := tape.noted(f"unasked {self.role} {occasion}"):
                kinds = {kind.__name__: kind for kind in (OutOfMoneyError, TooLongError)}
                raise kinds[told["kind"]](told["reason"])
            self._replay_cost(occasion, experiment)
        found = Answer.from_json(tape.call(f"{self.role} {occasion}", request, ask))
        if tape.noted(f"unasked {self.role} {occasion}"):
            tape.note(f"unasked {self.role} {occasion}", None)  # in an earlier session
        return found

    def _ask(
        self,
        messages: Sequence[BaseMessage],
        tools: Sequence[dict[str, Any]],
        occasion: str,
        experiment: str | None,
        force: str | None,
    ) -> Answer:
        size = sum(len(plain(m).encode()) for m in messages) + len(json.dumps(list(tools)))
        pauses = random.Random(occasion)
        for attempt in range(_ATTEMPTS):
            self.session.check_stop()
            try:
                return self._try(messages, tools, size, f"{occasion}.{attempt}", experiment, force)
            except (OutOfMoneyError, OutOfTimeError, SlipstreamError):
                raise
            except Exception as error:
                trouble = diagnose(error, self.spec)
                if trouble is None:
                    raise
                if trouble.too_long:
                    raise TooLongError(trouble.advice) from error
                if not trouble.passes or attempt == _ATTEMPTS - 1:
                    raise SlipstreamError(trouble.advice) from error
                pause_s = min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S)
                pause_s *= 0.75 + 0.5 * pauses.random()
                self._wait(trouble, pause_s if trouble.retry_after is None else trouble.retry_after)
        raise AssertionError("unreachable")

    def _try(
        self,
        messages: Sequence[BaseMessage],
        tools: Sequence[dict[str, Any]],
        size: int,
        occasion: str,
        experiment: str | None,
        force: str | None,
    ) -> Answer:
        """Make one attempt; what it cost is written down however it ends."""
        session = self.session
        with session.purse.lock:  # two coders don't commit the same dollar
            max_tokens = self._affordable(size)
            most = self._price.at_most(size, max_tokens) if self._price else None
            name = f"{session.run}|{self.role}|{occasion}|{session.costs.count(session.run)}"
            cost = Cost(name, session.run, experiment, self.role, str(self.spec), usd=most)
            session.purse.commit(cost)
        begun = time.monotonic()
        try:
            answer = self._stream(messages, tools, max_tokens, force)
        except Exception as error:
            trouble = diagnose(error, self.spec)
            billed = most if trouble is None or trouble.may_be_billed else 0.0
            what = trouble.what if trouble else type(error).__name__
            session.costs.end(name, outcome=what, usd=billed, wall_s=time.monotonic() - begun)
            raise
        except BaseException:  # Ctrl-C: it counts in full
            session.costs.end(name, outcome="interrupted", wall_s=time.monotonic() - begun)
            raise
        usage, usd = answer.usage, most
        if usage != Usage() and self._price is not None:
            usd = self._price.of(usage)
        found: dict[str, Any] = {
            "outcome": "malformed" if answer.malformed else "refused" if answer.refused else "ok",
            "input_tokens": usage.input,
            "cached_tokens": usage.cached_read,
            "output_tokens": usage.output,
            "usd": usd,
        }
        wall_s = time.monotonic() - begun
        session.costs.end(name, **found, wall_s=wall_s)
        session.cassette.note(f"cost {self.role} {occasion.rpartition('.')[0]}", found)
        return answer

    def _replay_cost(self, occasion: str, experiment: str | None) -> None:
        """Write down what the recorded call cost: later prompts say what is left."""
        session, name = self.session, f"{self.session.run}|{self.role}|{occasion}"
        found = session.cassette.noted(f"cost {self.role} {occasion}") or {}
        session.costs.begin(Cost(name, session.run, experiment, self.role, str(self.spec), **found))

    def _affordable(self, size: int) -> int:
        """Return the longest answer that the budget allows, within this role's own limit."""
        left = self.session.purse.left
        if left is None or self._price is None or not self._price.output:
            return self._max_tokens
        room = int((left - self._price.at_most(size, 0)) / (self._price.output * 1e-6))
        return self._max_tokens if room < _LEAST_TOKENS else min(self._max_tokens, room)

    def _stream(
        self,
        messages: Sequence[BaseMessage],
        tools: Sequence[dict[str, Any]],
        max_tokens: int,
        force: str | None,
    ) -> Answer:
        """Call the model, and show how its answer grows."""
        if self._client is None:
            self._client = make_client(self.spec)
        chunks: list[AIMessageChunk] = []
        length = 0
        told = time.monotonic()
        for chunk in stream(self._client, self.spec, messages, tools, max_tokens, force):
            if isinstance(chunk, AIMessageChunk):
                chunks.append(chunk)
                length += len(str(chunk.text))
            if time.monotonic() - told > 2.0:
                told = time.monotonic()
                text = f"{self.spec} answers: {length} characters"
                self.session.say(self.role, text, True)
        return answer_of(add_ai_message_chunks(*chunks) if chunks else None)

    def _wait(self, trouble: Trouble, pause_s: float) -> None:
        """Wait before another try, and say so.

        Raises:
            OutOfTimeError: the wait would outlast the run.
        """
        if pause_s > self.session.left_s():
            raise OutOfTimeError(
                f"{trouble.advice}; it asks for {pause_s:.0f} s, the run has less left"
            )
        self.session.say(self.role, f"{trouble.what}: again in {pause_s:.0f} s", False)
        end = time.monotonic() + pause_s
        while (left := end - time.monotonic()) > 0:
            self.session.check_stop()
            time.sleep(min(left, 0.5))
