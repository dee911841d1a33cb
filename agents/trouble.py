"""What a failed call of a model means, whether it passes, and what its user can do."""

import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from slipstream.evaluation.errors import StopRequested
from slipstream.evaluation.redaction import redact

from .specs import ModelSpec

_SHOWN = 200
# What clients raise when a body is not what the API promises.
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError)


@dataclass(frozen=True)
class Trouble:
    """A failed call.

    Attributes:
        what: in a few words.
        advice: one line: what was wrong, and what to do.
        passes: another try may go well.
        retry_after: seconds that the server asks to wait; None if it doesn't say.
        may_be_billed: the model may have been at work already.
        too_long: the conversation exceeds the model's context.
    """

    what: str
    advice: str
    passes: bool
    retry_after: float | None = None
    may_be_billed: bool = False
    too_long: bool = False


def diagnose(error: Exception, spec: ModelSpec) -> Trouble | None:
    """Return what an exception from a client means; None if it is no trouble with the model."""
    if isinstance(error, StopRequested):
        return None
    status = getattr(error, "status_code", None)
    said = redact(str(getattr(error, "message", "") or error)).replace("\n", " ")[:_SHOWN]
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if _is_too_long(error, status, said, kinds):
        advice = f"model {spec}: the conversation is too long for it ({said})"
        return Trouble("too long", advice, passes=False, too_long=True)
    if status is not None:
        return _by_status(int(status), error, said, spec)
    if "Timeout" in type(error).__name__:
        advice = f"model {spec}: no answer in time ({said}); try again later"
        return Trouble("no answer in time", advice, passes=True, may_be_billed=True)
    if kinds & {"TransportError", "APIConnectionError"}:  # of httpx, under whatever name it comes
        advice = f"model {spec}: no connection ({said}); is the address right, the network up?"
        return Trouble("no connection", advice, passes=True, may_be_billed=True)
    if _is_from_client(error) or isinstance(error, _UNREADABLE):
        advice = (
            f"model {spec}: its answers can't be read ({said}); does the server speak this API?"
        )
        return Trouble("an unreadable answer", advice, passes=True, may_be_billed=True)
    return None


def _by_status(status: int, error: Exception, said: str, spec: ModelSpec) -> Trouble:
    if status == 401:
        advice = f"model {spec}: the key was refused (401); check {spec.key_variable}"
        return Trouble("key refused", advice, passes=False)
    if status == 403:
        advice = f"model {spec}: not allowed with this key (403): {said}; ask for access to it"
        return Trouble("not allowed", advice, passes=False)
    if status == 404:
        advice = f"model {spec}: unknown there (404): {said}; check the name and the base URL"
        return Trouble("unknown model", advice, passes=False)
    if status == 429 and _has_no_money(error):
        advice = f"model {spec}: the account is out of credit (429): {said}; top it up"
        return Trouble("out of credit", advice, passes=False)
    if status == 429:
        advice = f"model {spec}: still rate-limited (429): {said}; wait, or use another model"
        return Trouble("rate-limited", advice, passes=True, retry_after=_retry_after(error))
    if status in (408, 409) or not 400 <= status < 500:  # 200 and failed: in mid-stream
        advice = f"model {spec}: the server fails ({status}): {said}; try again later"
        return Trouble(f"server error {status}", advice, True, _retry_after(error))
    advice = f"model {spec}: the request was refused ({status}): {said}"
    return Trouble(f"refused with {status}", advice, passes=False)


def _is_too_long(error: Exception, status: int | None, said: str, kinds: set[str]) -> bool:
    if "ContextOverflowError" in kinds or "context_length" in _codes(error):
        return True
    signs = ("context length", "context size", "context window", "too long", "too large")
    return status in (400, 413) and any(sign in said.lower() for sign in signs)


def _retry_after(error: Exception) -> float | None:
    headers: Any = getattr(getattr(error, "response", None), "headers", {})
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit_s)
        except (KeyError, ValueError):
            continue
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError, TypeError):
        return None


def _has_no_money(error: Exception) -> bool:
    return "insufficient_quota" in _codes(error) or "credit balance" in _codes(error)


def _codes(error: Exception) -> str:
    return f"{getattr(error, 'code', '')} {getattr(error, 'body', '')}".lower()


def _is_from_client(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in ("openai", "anthropic", "httpx")
