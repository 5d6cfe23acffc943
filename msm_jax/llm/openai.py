"""Any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, Ollama, our own, or a service.

One JSON call per request over the standard library: what is used of the interface is the same everywhere. Shapes are
stated in the prompt too, since not every server holds a model to a schema.
"""

import asyncio
import contextlib
import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from msm_jax.errors import UserError
from msm_jax.llm import services
from msm_jax.llm.request import Finish, Reply, Request, Unavailable, Usage, schema, without_thoughts

# For servers that ask for one; a server of one's own needs none.
KEY_VARIABLE = "LOCAL_API_KEY"
# Prefix of the model's name in keys of the store: a service's model of the same name is another one.
PREFIX = "local/"


class OpenAI:
    """The model `model` of the server at `url`, which ends in /v1 or is a host alone. Replies are not told apart by the
    server: another model behind the same name would pass for this one. Raises: UserError if the address or the key
    cannot be one."""

    def __init__(self, model: str, url: str, in_flight: int, timeout: float = 600.0, max_output_tokens: int = 65_536):
        self.model = f"{PREFIX}{model}"
        self._name, self._max_output_tokens = model, max_output_tokens
        base = services.checked(url.rstrip("/"), "config.calls.url")
        try:
            if not urllib.parse.urlsplit(base).hostname:
                raise ValueError
        except ValueError:
            raise UserError(f"config.calls.url={url}: is no address; write it as http://127.0.0.1:8000/v1") from None
        self._url = f"{base}/chat/completions" if base.endswith("/v1") else f"{base}/v1/chat/completions"
        self._key, self._timeout = services.checked(os.environ.get(KEY_VARIABLE, "").strip(), KEY_VARIABLE), timeout
        self._threads = ThreadPoolExecutor(in_flight, thread_name_prefix="call")

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def max_output_tokens(self, request: Request) -> int:
        return min(request.max_tokens + request.thinking, self._max_output_tokens)

    async def reply(self, request: Request) -> Reply:
        answer = await asyncio.get_running_loop().run_in_executor(self._threads, self._post, self._body(request))
        try:
            if error := answer.get("error"):  # with status 200, as gateways have it
                raise self._failure(_status(error), error if isinstance(error, str) else json.dumps(error), None)
            [choice, *_] = answer["choices"]
            message = choice["message"]
            text = services.text_of(message.get("content")) or services.text_of(message.get("refusal"))
            finish, detail = services.finish_of(choice.get("finish_reason"))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            return Reply("", Finish.ERROR, Usage(), self.model, f"unreadable answer of {self._url}: {error!r}")
        if finish is Finish.ERROR:
            detail = self._line(choice.get("error") or detail)
        model = str(answer.get("model") or self.model)
        # Not every server has a parser for thoughts.
        return Reply(without_thoughts(text), finish, _usage(answer.get("usage")), model, detail)

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._name,
            "messages": request.chat(),
            "temperature": request.temperature,
            "max_tokens": self.max_output_tokens(request),
            "stream": False,
        }
        if request.shape:
            form = {"name": request.stage, "schema": schema(request.shape)}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return body

    def _post(self, body: Mapping[str, Any]) -> Any:
        key = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        headers = {"Content-Type": "application/json"} | key
        call = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(call, timeout=self._timeout) as response:
                # A byte that is no UTF-8 costs the row that it is in, and no call.
                return json.loads(response.read().decode("utf-8-sig", "replace"))
        except urllib.error.HTTPError as error:
            said = repr(error)
            with contextlib.suppress(OSError, http.client.HTTPException):
                said = error.read(10_000).decode(errors="replace")
            raise self._failure(error.code, said, services.seconds(error.headers.get("Retry-After"))) from None
        except (ValueError, RecursionError) as error:
            raise Unavailable(f"{self._url} does not answer in JSON ({error})", perhaps_paid=True) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            perhaps_paid = not isinstance(reason, ConnectionRefusedError)
            raise Unavailable(f"{self._url}: {reason!r}", perhaps_paid=perhaps_paid) from None

    def _failure(self, status: int | None, said: str, after: float | None) -> Exception:
        model = f"config.calls.url and config.generation.model={self._name}"
        day = services.of_a_day(said)
        return services.failure(self._url, status, self._line(said), after, key=KEY_VARIABLE, model=model, day=day)

    def _line(self, said: Any) -> str:
        return services.line(said, self._key)


def _usage(counted: Any) -> Usage:
    counted = counted if isinstance(counted, dict) else {}
    details = counted.get("prompt_tokens_details")
    return Usage(
        prompt=counted.get("prompt_tokens"),
        cached=details.get("cached_tokens") if isinstance(details, dict) else 0,
        output=counted.get("completion_tokens"),
        total=counted.get("total_tokens"),
    )


def _status(error: Any) -> int | None:
    """The status that an error has in its body."""
    code = str(error.get("code") or error.get("status")) if isinstance(error, dict) else ""
    return int(code) if code.isdecimal() and 400 <= int(code) < 600 else None
