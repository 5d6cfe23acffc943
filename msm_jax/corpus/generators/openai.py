"""Any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, Ollama, our own, or a service.

One JSON call per request over the standard library: what is used of the interface is the same everywhere. Shapes are
stated in the prompt too, since not every server holds a model to a schema.
"""

import asyncio
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from msm_jax.corpus.generators.request import (
    Finish,
    Rejected,
    Reply,
    Request,
    Unavailable,
    Usage,
    schema,
    without_thoughts,
)
from msm_jax.errors import UserError

# For servers that ask for one; a server of one's own needs none.
KEY_VARIABLE = "LOCAL_API_KEY"
# Before the name of the model, in keys: what it replied is not what a service of that name would have.
PREFIX = "local/"

_FINISH = {"stop": Finish.STOP, "length": Finish.LENGTH, "content_filter": Finish.BLOCKED}


class OpenAI:
    """The model `model` of the server at `url`, which ends in /v1 or is a host alone.

    Replies are not told apart by the server: another model behind the same name would pass for this one.
    """

    def __init__(self, model: str, url: str, in_flight: int, timeout: float = 600.0, most_output: int = 65_536):
        self.model = f"{PREFIX}{model}"
        self._name, self._most_output = model, most_output
        base = url.rstrip("/")
        self._url = f"{base}/chat/completions" if base.endswith("/v1") else f"{base}/v1/chat/completions"
        self._key, self._timeout = os.environ.get(KEY_VARIABLE, "").strip(), timeout
        self._threads = ThreadPoolExecutor(in_flight, thread_name_prefix="call")

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def most_output(self, request: Request) -> int:
        return min(request.max_tokens + request.thinking, self._most_output)

    async def reply(self, request: Request) -> Reply:
        answer = await asyncio.get_running_loop().run_in_executor(self._threads, self._post, self._body(request))
        try:
            [choice, *_] = answer["choices"]
            text = choice["message"].get("content") or ""
            counted = answer.get("usage") or {}
            usage = Usage(
                prompt=counted.get("prompt_tokens") or 0,
                cached=(counted.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
                output=counted.get("completion_tokens") or 0,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Unavailable(f"unreadable answer of {self._url}: {error!r}", perhaps_paid=True) from None
        finish = _FINISH.get(choice.get("finish_reason") or "stop", Finish.LENGTH)
        # Not every server has a parser for thoughts.
        return Reply(without_thoughts(text), finish, usage, answer.get("model") or self.model)

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._name,
            "messages": request.chat(),
            "temperature": request.temperature,
            "max_tokens": self.most_output(request),
            "stream": False,
        }
        if request.shape:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": request.stage, "schema": schema(request.shape)},
            }
        return body

    def _post(self, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        call = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(call, timeout=self._timeout) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise self._told(error) from None
        except ValueError as error:
            raise Unavailable(f"{self._url} does not answer in JSON ({error})", perhaps_paid=True) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            never_made = isinstance(reason, ConnectionRefusedError)
            raise Unavailable(f"{self._url}: {reason!r}", perhaps_paid=not never_made) from None

    def _told(self, error: urllib.error.HTTPError) -> Exception:
        said = error.read(500).decode(errors="replace").replace(self._key or "\0", "[key]")
        message = f"{error.code}: {' '.join(said.split())}"
        if error.code in (408, 409, 429) or error.code >= 500:
            after = error.headers.get("Retry-After", "")
            busy = error.code in (429, 503)
            return Unavailable(message, float(after) if after.isdigit() else None, error.code in (408, 504), busy)
        if error.code in (401, 403):
            return UserError(f"{self._url} refuses the key ({message}); look at {KEY_VARIABLE}")
        if error.code == 404:
            return UserError(
                f"{self._url}: {message}; look at config.calls.url and config.generation.model={self._name}"
            )
        return Rejected(f"{self._url} refuses a request: {message}")
