"""What a model's tokens cost, from a table in a file that the user can put their own before."""

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from slipstream.evaluation.errors import SlipstreamError
from slipstream.evaluation.home import data_dir

_SHIPPED = Path(__file__).resolve().parent / "prices.toml"
_PER = 1e-6
_RELEASE = re.compile(r"-(\d{8}|\d{4}-\d\d-\d\d|latest)$")


@dataclass(frozen=True)
class Usage:
    """Tokens of one call; `cached_read` and `cached_write` are part of `input`."""

    input: int = 0
    output: int = 0
    cached_read: int = 0
    cached_write: int = 0


class Price(BaseModel):
    """Dollars per million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    input: float = Field(ge=0)
    output: float = Field(ge=0)
    read: float | None = Field(None, ge=0)
    write: float | None = Field(None, ge=0)

    def of(self, usage: Usage) -> float:
        """Return the dollars that a call costs."""
        fresh = usage.input - usage.cached_read - usage.cached_write
        read = self.input if self.read is None else self.read
        write = self.input if self.write is None else self.write
        cached = usage.cached_read * read + usage.cached_write * write
        return _PER * (fresh * self.input + cached + usage.output * self.output)

    def at_most(self, request_bytes: int, max_tokens: int) -> float:
        """Return the most that a call can cost: no token is shorter than a byte."""
        dearest = max(self.input, self.write or 0.0)
        return _PER * ((request_bytes + _OVERHEAD) * dearest + max_tokens * self.output)


_OVERHEAD = 1000  # tokens that providers add for tools, which the request doesn't show
FREE = Price(input=0.0, output=0.0, read=None, write=None)
_TABLE = TypeAdapter(dict[str, Price])


def price_of(model: str, *, local: bool) -> Price | None:
    """Return a model's price, or None if no table has it.

    Args:
        model: `provider:name`.
        local: it runs on a server of the user's own, which costs nothing unless a table says so.

    Raises:
        SlipstreamError: the user's table can't be read.
    """
    for path in (*_own(), _SHIPPED):
        table = _read(path)
        for name in (model, _RELEASE.sub("", model)):
            if name in table:
                return table[name]
    return FREE if local else None


def _own() -> list[Path]:
    if named := os.environ.get("SLIPSTREAM_PRICES"):
        return [Path(named).expanduser()]
    path = data_dir() / "prices.toml"
    return [path] if path.exists() else []


def _read(path: Path) -> dict[str, Price]:
    try:
        return _TABLE.validate_python(tomllib.loads(path.read_text()))
    except OSError as error:
        raise SlipstreamError(f"prices {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise SlipstreamError(f"prices {path}: not readable as TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise SlipstreamError(f"prices {path}: {field}: {first['msg']}") from error
