"""OpenAI's shape of an error: {"error": {message, type, param, code}}."""

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException


class RequestError(Exception):
    """A request that can't be served.

    Attributes:
        param: the field that is wrong, if it is one.
        code: what a script can compare, like model_not_found.
    """

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status

    @property
    def body(self) -> dict[str, Any]:
        """The error as it is sent."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


async def answer_error(_: Request, error: Exception) -> JSONResponse:
    """Return what a client is told of `error`."""
    assert isinstance(error, RequestError)
    return JSONResponse(error.body, error.status)


async def answer_wrong_fields(request: Request, error: Exception) -> JSONResponse:
    """Return what is wrong with the first field that is."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return await answer_error(request, RequestError("the body is no valid JSON"))
    path = [str(part) for part in first["loc"] if part != "body"]
    name = path[0] if path else None
    what = "Unrecognized request argument" if first["type"] == "extra_forbidden" else first["msg"]
    return await answer_error(request, RequestError(f"{'.'.join(path)}: {what}", param=name))


async def answer_http(request: Request, error: Exception) -> JSONResponse:
    """Return a wrong path or method in the same shape."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return await answer_error(request, RequestError(message, status=error.status_code))


async def answer_crash(request: Request, error: Exception) -> JSONResponse:
    """Return an error of our own; the traceback is in the server's log."""
    name = type(error).__name__
    return await answer_error(request, RequestError(f"{name}: {error}", status=500))
