"""Agents as they are asked for on a command line: `offline`, `anthropic:NAME`, `cmd:COMMAND`."""

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.redaction import redact

OFFLINE = "offline"
COMMAND = "cmd:"
_PROVIDERS = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
_EXAMPLES = "offline, anthropic:NAME, openai:NAME, openai:NAME@http://HOST/v1"


@dataclass(frozen=True)
class ModelSpec:
    """A chat model behind a provider's API, or behind a server that speaks it.

    Attributes:
        base_url: of that server; None for the provider's own.
    """

    provider: str
    name: str
    base_url: str | None = None

    def __str__(self) -> str:
        """The model as it was asked for."""
        return f"{self.provider}:{self.name}" + (f"@{self.base_url}" if self.base_url else "")

    @property
    def key_variable(self) -> str:
        """The environment variable that holds the key for where requests go.

        A provider's key goes to that provider only (or where its own OPENAI_BASE_URL points);
        another server gets one of its own.
        """
        if self.base_url is None:
            return _PROVIDERS[self.provider]
        host = urlsplit(self.base_url).hostname or ""
        if host == "huggingface.co" or host.endswith(".huggingface.co"):
            return "HF_TOKEN"
        return "SLIPSTREAM_API_KEY"

    def key(self) -> str:
        """Return the key.

        Raises:
            SlipstreamError: there is none, and the provider wants one.
        """
        found = os.environ.get(self.key_variable, "")
        if found or self.key_variable == "SLIPSTREAM_API_KEY":
            return found or "none"  # a server of one's own mostly asks for no key
        raise SlipstreamError(
            f"model {self}: no key; export {self.key_variable}=… (keys come from the environment "
            "only), or leave the role offline"
        )


def parse_model(text: str) -> ModelSpec:
    """Return the model that `provider:name[@base-url]` names.

    Raises:
        SlipstreamError: it names none.
    """
    provider, _, rest = text.partition(":")
    name, _, base_url = rest.partition("@")
    if provider not in _PROVIDERS or not name:
        raise SlipstreamError(f"model {text!r}: write one of {_EXAMPLES}")
    if base_url and urlsplit(base_url).scheme not in ("http", "https"):
        raise SlipstreamError(f"model {text!r}: after @ comes a URL like http://localhost:8000/v1")
    parts = urlsplit(base_url)
    if parts.username or parts.password or parts.query:
        raise SlipstreamError(
            f"model {provider}:{name}: its URL holds more than an address; a key goes into the "
            "environment, where nobody writes it down"
        )
    return ModelSpec(provider, name, base_url.rstrip("/") or None)


def parse_models(text: str) -> tuple[ModelSpec, ...]:
    """Return the models of one role, separated by commas; none for `offline`.

    Raises:
        SlipstreamError: one of them names no model, or comes twice.
    """
    if text == OFFLINE:
        return ()
    models = tuple(parse_model(part.strip()) for part in text.split(","))
    if len(set(models)) < len(models):
        raise SlipstreamError(f"models {text!r}: one of them comes twice")
    return models


@dataclass(frozen=True)
class AgentSpecs:
    """What the three roles were asked for; kept with the run, so that it resumes with the same.

    Attributes:
        coder: models, or `cmd:` and a command line.
        coder_environment: names of variables that an outside coder's command may see.
        coder_minutes: what one hypothesis may take an outside coder.
        approve: a person looks at each change before it is measured.
    """

    planner: str = OFFLINE
    coder: str = OFFLINE
    benchmarker: str = OFFLINE
    coder_environment: tuple[str, ...] = ()
    coder_minutes: float = 10.0
    approve: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "coder_environment", tuple(self.coder_environment))

    @property
    def think(self) -> bool:
        """Whether any of them is more than the shipped code."""
        return (self.planner, self.coder, self.benchmarker) != (OFFLINE,) * 3

    def check(self) -> None:
        """Make sure that all of it can be had, before anything is measured.

        Raises:
            SlipstreamError: no such model, no key, no command.
        """
        for role in ("planner", "coder", "benchmarker"):
            asked = getattr(self, role)
            if role == "coder" and asked.startswith(COMMAND):
                if not asked.removeprefix(COMMAND).strip():
                    raise SlipstreamError("coder 'cmd:': after it comes a command, like claude -p")
                if redact(asked) != asked:
                    raise SlipstreamError(
                        f"coder {redact(asked)!r}: its command line holds a key, and would be "
                        "written down; let it read a variable (--coder-env NAME)"
                    )
                continue
            models = parse_models(asked)
            if role == "benchmarker" and len(models) > 1:
                raise SlipstreamError(
                    f"benchmarker {asked!r}: one model; explaining changes no gain, so nothing "
                    "would say which of several is better"
                )
            for model in models:
                model.key()
