"""What requests say: OpenAI's fields, and those of vLLM that a benchmark needs.

A field that would change the answer and that this server can't honour is refused, not ignored.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

MOST_LOGPROBS = 20
Text = Annotated[str, Field(max_length=4_000_000)]
Tokens = list[int]
MEDIA = ("image_url", "input_audio", "audio_url")  # the last one is vLLM's


def _one(count: int | None) -> int | None:
    if count not in (None, 1):
        raise ValueError(f"{count}: this server gives one answer to a prompt")
    return count


def _nothing(value: Any) -> Any:
    if value:
        raise ValueError("not supported by this server")
    return value


One = Annotated[int | None, AfterValidator(_one)]
Unsupported = AfterValidator(_nothing)


class Sampling(BaseModel):
    """What both kinds of request share.

    Attributes:
        temperature: 0: the likeliest token each time.
        top_k: 0 or -1: all. An extension of vLLM, as are `ignore_eos`, `add_special_tokens`,
            `return_token_ids` and `prompt_logprobs`.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    temperature: float = Field(1.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=-1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: dict[str, bool] | None = None
    n: One = 1
    ignore_eos: bool = False
    return_token_ids: bool = False
    prompt_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    presence_penalty: Annotated[float | None, Unsupported] = 0.0
    frequency_penalty: Annotated[float | None, Unsupported] = 0.0
    logit_bias: Annotated[dict[str, float] | None, Unsupported] = None
    user: str | None = None
    repetition_penalty: float = 1.0
    min_p: float = 0.0
    min_tokens: int = 0

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        """A field that is null is one that isn't there."""
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}

    @field_validator("repetition_penalty", "min_p", "min_tokens")
    @classmethod
    def _neutral(cls, value: float, info: ValidationInfo) -> float:
        neutral = 1.0 if info.field_name == "repetition_penalty" else 0
        if value != neutral:
            raise ValueError(f"{value}: not supported by this server, but for {neutral:g}")
        return value

    @field_validator("stop")
    @classmethod
    def _some_stops(cls, stop: str | list[str] | None) -> list[str]:
        stops = [stop] if isinstance(stop, str) else list(stop or ())
        if len(stops) > 16 or "" in stops:
            raise ValueError("up to 16 strings, none of them empty")
        return stops

    @property
    def stops(self) -> list[str]:
        """The strings that end an answer."""
        assert self.stop is None or isinstance(self.stop, list)
        return self.stop or []

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return bool(self.stream_options and self.stream_options.get("include_usage"))


class Completion(Sampling):
    """POST /v1/completions."""

    prompt: Text | Tokens | list[Text] | list[Tokens]
    max_tokens: int = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    add_special_tokens: bool = True
    echo: Annotated[bool, Unsupported] = False
    best_of: One = 1
    suffix: Annotated[str | None, Unsupported] = None

    @property
    def prompts(self) -> Sequence[str | Tokens]:
        """The prompts, also if it is only one."""
        prompt = self.prompt
        single = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
        return [prompt] if single else prompt  # type: ignore[list-item, return-value]


class Message(BaseModel):
    """One turn of a conversation; content may come in parts: text, pictures, sounds."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]] | None

    @field_validator("content")
    @classmethod
    def _known_parts(
        cls, content: str | list[dict[str, Any]] | None
    ) -> str | list[dict[str, Any]] | None:
        for part in content if isinstance(content, list) else ():
            kind = part.get("type")
            if kind not in ("text", *MEDIA):
                raise ValueError(f"part of type {kind!r}: use text, {', '.join(MEDIA)}")
            if not isinstance(part.get(kind), str | dict):
                raise ValueError(f"part of type {kind!r} needs a field {kind!r}")
            if kind == "text" and not isinstance(part["text"], str):
                raise ValueError("part of type 'text': its text is no string")
        return content

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The content in parts."""
        if isinstance(self.content, list):
            return self.content
        return [{"type": "text", "text": self.content or ""}]

    @property
    def text(self) -> str:
        """What is text of it."""
        return "".join(part["text"] for part in self.parts if part["type"] == "text")

    @property
    def media(self) -> list[str]:
        """The types of what isn't text."""
        return [part["type"] for part in self.parts if part["type"] in MEDIA]


class Chat(Sampling):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    response_format: dict[str, Any] | None = None
    tools: Annotated[list[Any] | None, Unsupported] = None

    @field_validator("response_format")
    @classmethod
    def _plain_text(cls, wanted: dict[str, Any] | None) -> dict[str, Any] | None:
        if wanted and wanted.get("type") != "text":
            raise ValueError(f"{wanted.get('type')!r}: this server answers in plain text")
        return wanted

    @property
    def most_tokens(self) -> int | None:
        """The longest answer that is wanted; None: as long as the context is."""
        return self.max_completion_tokens or self.max_tokens
