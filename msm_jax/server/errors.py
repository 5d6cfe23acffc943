"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}}."""

from collections.abc import Mapping
from typing import Any

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What a client is told.

    Attributes:
      status: of HTTP.
      message: one line.
      param: the field that it is about, if it is about one.
      code: for programs, such as "model_not_found".
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, " ".join(message.split()), param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def stopping() -> ApiError:
    return ApiError(503, "the server is stopping; ask it again when it is back", code="stopping")


def failed(for_good: bool = True) -> ApiError:
    """Why stands in the server's log."""
    if for_good:
        return ApiError(503, "the sampler has failed, and the server must be started anew", code="sampler_failed")
    headers = {"Retry-After": "1"}
    return ApiError(503, "the sampler failed, and goes on; ask again", code="sampler_failed", headers=headers)
