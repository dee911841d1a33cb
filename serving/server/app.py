"""The routes: /v1/models, /v1/completions, /v1/chat/completions, /health."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Send
from torch import Tensor

from .answers import DONE, Piece, Writer, event, usage_of
from .decoding import Decoder, Engine, Job, Soft, Step
from .errors import (
    RequestError,
    answer_crash,
    answer_error,
    answer_http,
    answer_wrong_fields,
)  # fmt: skip
from .fields import Chat, Completion, Sampling
from .media import read_conversation
from .senses import Perceived, Senses
from .text import TextStream

_GONE = 499  # as nginx has it: the client closed the connection
_MOST_PROMPTS = 128
_LONGEST_TOKEN = 64  # characters; far more than a text's average
_COLDEST = 1e-5  # below, dividing by the temperature gives nothing but infinities
_LOG = logging.getLogger("uvicorn.error")


@dataclass
class Served:
    """An engine under a name.

    Attributes:
        tokenizer: of transformers.
        max_context: tokens of a prompt and its answer together.
        ends: tokens that end an answer, unless `ignore_eos` says otherwise.
        senses: what reads pictures and sounds, if the model does.
    """

    engine: Engine
    tokenizer: Any
    name: str
    max_context: int
    ends: frozenset[int]
    senses: Senses | None = None
    created: int = field(default_factory=lambda: int(time.time()))


def make_app(served: Served) -> FastAPI:
    """Return the server's application."""
    service = _Service(served)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.decoder = Decoder(served.engine)
        yield
        service.decoder.close()

    app = FastAPI(title="slipstream", lifespan=life, docs_url=None, redoc_url=None)
    app.add_exception_handler(RequestError, answer_error)
    app.add_exception_handler(RequestValidationError, answer_wrong_fields)
    app.add_exception_handler(HTTPException, answer_http)
    app.add_exception_handler(Exception, answer_crash)

    @app.get("/health")
    async def health() -> Response:
        return Response()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.card()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.check_name(name)
        return service.card()

    @app.post("/v1/completions")
    async def completions(asked: Completion, request: Request) -> Response:
        return await service.answer(asked, service.read_prompts(asked), request)

    @app.post("/v1/chat/completions")
    async def chat(asked: Chat, request: Request) -> Response:
        return await service.answer(asked, [await service.read_messages(asked)], request)

    return app


class _Service:
    """Turns requests into jobs, and what the engine says into answers."""

    decoder: Decoder

    def __init__(self, served: Served) -> None:
        self._served = served

    def card(self) -> dict[str, Any]:
        """The model as /v1/models lists it."""
        return {
            "id": self._served.name,
            "object": "model",
            "created": self._served.created,
            "owned_by": "slipstream",
            "max_model_len": self._served.max_context,
        }

    def check_name(self, name: str) -> None:
        if name != self._served.name:
            raise RequestError(
                f"The model `{name}` does not exist: this server has `{self._served.name}`",
                param="model",
                code="model_not_found",
                status=404,
            )

    def read_prompts(self, asked: Completion) -> list[Job]:
        self.check_name(asked.model)
        if not 0 < len(asked.prompts) <= _MOST_PROMPTS:
            raise RequestError(
                f"prompt: {len(asked.prompts)} of them; 1 to {_MOST_PROMPTS} are answered",
                param="prompt",
            )
        tokens = [self._encoded(prompt, asked) for prompt in asked.prompts]
        return [self._job(asked, one, asked.max_tokens, asked.logprobs) for one in tokens]

    def _encoded(self, prompt: str | list[int], asked: Completion) -> list[int]:
        if not isinstance(prompt, str):
            return prompt
        self._check_length(prompt, "prompt")
        tokens: list[int] = self._served.tokenizer.encode(
            prompt, add_special_tokens=asked.add_special_tokens
        )
        return tokens

    def _check_length(self, text: str, param: str) -> None:
        """Refuse what can't fit before it is tokenized, which would hold everybody up."""
        most = _LONGEST_TOKEN * self._served.max_context
        if len(text) > most:
            raise RequestError(
                f"{param}: {len(text)} characters can't be {self._served.max_context} tokens, this "
                "model's maximum context length",
                param=param,
                code="context_length_exceeded",
            )

    async def read_messages(self, asked: Chat) -> Job:
        self.check_name(asked.model)
        self._check_length("".join(one.text for one in asked.messages), "messages")
        if self._served.tokenizer.chat_template is None:
            raise RequestError(
                "this model has no chat template: use /v1/completions", param="messages"
            )
        soft = None
        try:
            if media := [kind for one in asked.messages for kind in one.media]:
                # Decoding takes a while, and others want to be answered.
                perceived = await asyncio.to_thread(self._perceived, asked, media[0])
                tokens, soft = perceived.tokens, partial(self._encoded_media, perceived)
            else:
                turns = [{"role": one.role, "content": one.text} for one in asked.messages]
                tokens = self._served.tokenizer.apply_chat_template(
                    turns, add_generation_prompt=True, return_dict=False
                )
        except RequestError:
            raise
        except Exception as error:  # the model's template is a program: it may raise anything
            raise RequestError(f"messages: {error}", param="messages") from error
        left = self._served.max_context - len(tokens)
        count = asked.most_tokens if asked.most_tokens is not None else max(left, 1)
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        return self._job(asked, tokens, count, logprobs, soft)

    def _perceived(self, asked: Chat, kind: str) -> Perceived:
        senses, engine = self._served.senses, self._served.engine
        if senses is None or not getattr(engine, "takes_soft_tokens", False):
            whose = "model" if senses is None else "engine"
            raise RequestError(
                f"messages: part of type {kind!r}: this {whose} reads text only", param="messages"
            )
        if asked.prompt_logprobs is not None:
            raise RequestError(
                "prompt_logprobs: a prompt with pictures or sounds has none",
                param="prompt_logprobs",
            )
        return senses.read(read_conversation(asked.messages))

    def _encoded_media(self, perceived: Perceived) -> tuple[Tensor, Tensor]:
        assert self._served.senses is not None
        return self._served.senses.encode(perceived)

    def _job(
        self,
        asked: Sampling,
        prompt: list[int],
        count: int,
        logprobs: int | None,
        soft: Soft | None = None,
    ) -> Job:
        size, most = self._served.engine.vocab_size, self._served.max_context
        if not prompt:
            raise RequestError("prompt: no tokens", param="prompt")
        if wrong := [token for token in prompt if not 0 <= token < size]:
            raise RequestError(
                f"prompt: token {wrong[0]} is not in the vocabulary of {size}", param="prompt"
            )
        if len(prompt) + count > most:
            raise RequestError(
                f"This model's maximum context length is {most} tokens. However, you requested "
                f"{len(prompt) + count} tokens ({len(prompt)} in the prompt; {count} for the "
                "answer). Please reduce the prompt or max_tokens.",
                param="prompt",
                code="context_length_exceeded",
            )
        return Job(
            prompt,
            count,
            0.0 if asked.temperature < _COLDEST else asked.temperature,
            asked.top_p,
            asked.top_k,
            asked.seed,
            logprobs,
            asked.prompt_logprobs,
            all_tokens=asked.ignore_eos and not asked.stops,
            soft=soft,
        )

    async def answer(self, asked: Sampling, jobs: list[Job], request: Request) -> Response:
        """Answer a request, at once or in pieces."""
        writer = Writer(asked, self._served.name, self._served.tokenizer)
        if asked.stream:
            events = self._events(asked, jobs, writer)
            return _Events(events, media_type="text/event-stream")
        return await _unless_gone(request, lambda: self._whole(asked, jobs, writer))

    async def _whole(self, asked: Sampling, jobs: list[Job], writer: Writer) -> Response:
        choices, num_answer = [], 0
        for index, job in enumerate(jobs):
            try:
                async with aclosing(self._pieces(asked, job)) as pieces:
                    piece = Piece.of([piece async for piece in pieces])
            except Exception as error:
                raise _own_error(error) from error
            choices.append(writer.choice(index, piece, job.prompt, first=True, chunk=False))
            num_answer += len(piece.steps)
        num_prompt = sum(len(job.prompt) for job in jobs)
        return JSONResponse(writer.whole(choices, usage_of(num_prompt, num_answer)))

    async def _events(
        self, asked: Sampling, jobs: list[Job], writer: Writer
    ) -> AsyncGenerator[bytes]:
        num_answer = 0
        try:
            for index, job in enumerate(jobs):
                first = True
                async with aclosing(self._pieces(asked, job)) as pieces:
                    async for piece in pieces:
                        choice = writer.choice(index, piece, job.prompt, first=first, chunk=True)
                        yield event(writer.chunk([choice]))
                        first = False
                        num_answer += len(piece.steps)
            if asked.include_usage:
                num_prompt = sum(len(job.prompt) for job in jobs)
                yield event(writer.chunk([], usage_of(num_prompt, num_answer)))
        except Exception as error:  # the status has been sent: the stream itself has to say it
            yield event(_own_error(error).body)
        yield DONE

    async def _pieces(self, asked: Sampling, job: Job) -> AsyncGenerator[Piece]:
        """Yield an answer as it grows; the last piece says why it ends."""
        ends = frozenset() if asked.ignore_eos else self._served.ends
        stream = TextStream(self._served.tokenizer, asked.stops)
        count = 0
        async with aclosing(self.decoder.run(job)) as turns:
            async for turn in turns:
                piece = Piece(of_prompt=[step for step in turn if step.of_prompt])
                new = [step for step in turn if not step.of_prompt][: job.max_tokens - count]
                for some in _until_end(new, ends, asked):
                    piece.steps += some
                    piece.text += stream.push([step.token for step in some])
                    count += len(some)
                    if some[-1].token in ends or stream.stopped:
                        piece.finish = "stop"
                        break
                if piece.finish or (count and count == job.max_tokens):
                    piece.finish = piece.finish or "length"
                    if not stream.stopped:
                        piece.text += stream.finish()
                        piece.finish = "stop" if stream.stopped else piece.finish
                    yield piece
                    return
                if piece.steps or piece.of_prompt:
                    yield piece
        # Nothing was asked for but the prompt's log-probabilities, or the engine fell short.
        yield Piece(stream.finish(), finish="length")


def _own_error(error: Exception) -> RequestError:
    """Return what a client is told of the engine's error; the traceback goes to the log."""
    _LOG.error("the engine failed", exc_info=error)
    told = f"{type(error).__name__}: {error}"
    return RequestError(told, status=HTTPStatus.INTERNAL_SERVER_ERROR)


class _Events(StreamingResponse):
    """A stream that ends with its reader, not when somebody collects garbage."""

    async def stream_response(self, send: Send) -> None:
        events = self.body_iterator
        assert isinstance(events, AsyncGenerator)
        async with aclosing(events):
            await super().stream_response(send)


def _until_end(steps: list[Step], ends: frozenset[int], asked: Sampling) -> Iterator[list[Step]]:
    """Yield tokens up to one that ends the answer; one by one if a string may end it too."""
    last = next((i for i, step in enumerate(steps) if step.token in ends), len(steps) - 1)
    if asked.stops:
        yield from ([step] for step in steps[: last + 1])
    elif steps:
        yield steps[: last + 1]


async def _unless_gone(
    request: Request, work: Callable[[], Coroutine[Any, Any, Response]]
) -> Response:
    """Do the work, unless the client hangs up before it is done."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answering, watching = asyncio.create_task(work()), asyncio.create_task(gone())
    try:
        await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        return Response(status_code=_GONE)
    finally:
        watching.cancel()
        answering.cancel()
        await asyncio.wait({answering, watching})
