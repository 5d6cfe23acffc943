"""Gemini, through google-genai: one call at a time (standard, flex), and jobs of many (batch).

What is known of the service and its client (measured with 3.4.0) is in the code's comments, where it matters. Neither
retries here: `Caller` does, for the client passes over the delay that the service asks for.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import json
import os
import re
import ssl
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic

from msm_jax.errors import UserError
from msm_jax.llm import services
from msm_jax.llm.request import Finish, Gone, Reply, Request, Unavailable, Usage

KEY_VARIABLES = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
_KEYS = " or ".join(KEY_VARIABLES)

# Models whose thinking cannot be turned off: room for the thoughts that they have at the least.
_LEAST_THOUGHTS = 2048
# Beginnings of names of errors: a connection that was never made has cost nothing, one that broke may have.
_NEVER_MADE = ("ConnectError", "ConnectTimeout", "ConnectionRefused", "ClientConnector")
_JOB_RUNS = ("PENDING", "QUEUED", "RUNNING", "UPDATING", "PAUSED", "UNSPECIFIED", "CANCELLING")


def key_from_environment() -> str:
    """Raises: UserError if neither variable is set."""
    for variable in KEY_VARIABLES:
        if key := os.environ.get(variable, "").strip():
            return key
    raise UserError(
        f"{' and '.join(KEY_VARIABLES)} are not set, and config.generator=gemini needs a key of Gemini; export one, or "
        "try the pipeline without: --config.generator=offline"
    )


class Gemini:
    """A model of Gemini. `service` is standard or flex, for single calls; `max_output_tokens`: that it can write. The
    key goes to the service and nowhere else: it is cut out of messages. Raises: UserError if it can be none."""

    def __init__(
        self,
        model: str,
        key: str,
        service: str = "standard",
        timeout: float = 600.0,
        base_url: str | None = None,
        max_output_tokens: int = 65_536,
    ):
        from google import genai

        services.checked(key, _KEYS)
        self.model = model
        self._key, self._service, self._max_output_tokens = key, service, max_output_tokens
        # Later clients default to another version of the interface, which lacks thinking and batches.
        options = {"api_version": "v1beta", "timeout": int(timeout * 1000)}
        # With aiohttp, where that is installed, the client sends a request again by itself when a connection breaks,
        # and nobody would know that it was charged twice.
        self._http = options["httpx_async_client"] = _http_client(timeout)
        if base_url:
            options["base_url"] = base_url
        self._client = genai.Client(api_key=key, http_options=options)

    async def close(self) -> None:
        await self._client.aio.aclose()
        await self._http.aclose()

    def max_output_tokens(self, request: Request) -> int:
        """Tokens that the service may write, thoughts with them: its limit covers both."""
        cannot_stop = re.match(r"gemini-(2\.5-pro|[3-9])", self.model)
        thoughts = request.thinking or (_LEAST_THOUGHTS if cannot_stop else 0)
        return min(request.max_tokens + thoughts, self._max_output_tokens)

    async def reply(self, request: Request) -> Reply:
        ask, config = self._client.aio.models.generate_content, self._config(request, self._service)
        with self._told():
            try:
                response = await ask(model=self.model, contents=request.prompt, config=config)
            except pydantic.ValidationError as error:
                return Reply("", Finish.ERROR, Usage(), self.model, self._line(f"unreadable answer: {error}"))
        return _reply(response)

    async def submit(self, name: str, requests: Mapping[str, Request]) -> str:
        """Sends a batch job: key -> request. Returns the service's id of it; `name` finds it again."""
        from google.genai import types

        source = [
            types.InlinedRequest(contents=request.prompt, config=self._config(request, "batch"), metadata={"key": key})
            for key, request in requests.items()
        ]
        with self._told():
            job = await self._client.aio.batches.create(model=self.model, src=source, config={"display_name": name})
        return job.name

    async def find(self, name: str) -> str | None:
        """The id of the job with this name: one whose answer to `submit` never came."""
        with self._told():
            async for job in await self._client.aio.batches.list():
                if job.display_name == name:
                    return job.name
        return None

    async def collect(self, job_id: str) -> tuple[str, list[tuple[str | None, Reply]]] | None:
        """(state, replies, each with its key) of a job that is over, also of one that answered only a part; None while
        it runs. Raises: Gone.

        Replies are told apart by their key, not by their place: that of one that comes without is None, for a text of
        another request would pass for that of this one.
        """
        with self._told(), warnings.catch_warnings():  # of states that this version of the client does not know
            warnings.simplefilter("ignore")
            try:
                job = await self._client.aio.batches.get(name=job_id)
            except Exception as error:
                if getattr(error, "code", None) == 404:
                    raise Gone from None
                raise
        state = getattr(job.state, "name", str(job.state)).removeprefix("JOB_STATE_").removeprefix("BATCH_STATE_")
        if any(state.endswith(runs) for runs in _JOB_RUNS):
            return None
        entries = [entry for entry in (job.dest and job.dest.inlined_responses) or () if entry.response is not None]
        return state, [((entry.metadata or {}).get("key"), _reply(entry.response)) for entry in entries]

    async def cancel(self, job_id: str) -> None:
        with self._told():
            await self._client.aio.batches.cancel(name=job_id)

    def _config(self, request: Request, service: str) -> dict[str, Any]:
        config: dict[str, Any] = {
            "system_instruction": request.system or None,
            "temperature": request.temperature,
            "max_output_tokens": self.max_output_tokens(request),
            "thinking_config": self._thinking(request.thinking),
            # Texts about an assistant that is tempted to do harm are what this is for; what is refused is counted.
            "safety_settings": [
                {"category": f"HARM_CATEGORY_{category}", "threshold": "BLOCK_NONE"}
                for category in ("HARASSMENT", "HATE_SPEECH", "SEXUALLY_EXPLICIT", "DANGEROUS_CONTENT")
            ],
        }
        if request.shape:
            config |= {"response_mime_type": "application/json", "response_schema": request.shape}
        if service == "flex":
            config["service_tier"] = "flex"
        return config

    def _thinking(self, tokens: int) -> dict[str, Any] | None:
        """Third-generation models are told a level, earlier ones a number of tokens, those before 2.5 nothing."""
        if re.match(r"gemini-[3-9]", self.model):
            if not tokens:
                return {"thinking_level": "minimal" if "flash" in self.model else "low"}
            return {"thinking_level": "low" if tokens <= 4096 else "high"}
        if self.model.startswith("gemini-2.5-pro"):
            return {"thinking_budget": max(tokens, 128)}
        return {"thinking_budget": tokens} if self.model.startswith("gemini-2.5") else None

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong, as one of the exceptions of a generator; what nobody foresaw stays what it is."""
        try:
            yield
        except Exception as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> Exception:
        from google.genai import errors

        if isinstance(error, errors.APIError):
            return self._of_service(error)
        kind = type(error)
        library = kind.__module__.split(".")[0]
        if isinstance(error, OSError) or library in ("httpx", "httpx2", "httpcore", "httpcore2", "aiohttp", "anyio"):
            never_made = kind.__name__.startswith(_NEVER_MADE)
            return Unavailable(self._line(f"{kind.__name__}: {error}"), perhaps_paid=not never_made)
        if isinstance(error, ValueError) or library in ("pydantic_core", "google"):  # half of an answer
            return Unavailable(self._line(f"unreadable answer, {kind.__name__}: {error}"), perhaps_paid=True)
        return error

    def _of_service(self, error: Any) -> Exception:
        said = error.message or (error.details if isinstance(error.details, str) else json.dumps(error.details))
        line, model = self._line(f"{error.status or ''} {said}"), f"config.generation.model={self.model}"
        # The message is the same for all quotas, and the delay that comes with that of a day is of seconds.
        day = services.of_a_day(error.message, *_details(error))
        about = {"key": _KEYS, "model": model, "day": day, "resets": "at midnight, Pacific time"}
        return services.failure("Gemini", error.code, line, _retry_delay(error), **about)

    def _line(self, said: Any) -> str:
        return services.line(said, self._key)


def _http_client(timeout: float) -> Any:
    httpx, certificates = _httpx()
    about = {"limits": httpx.Limits(max_connections=None), "event_hooks": {"response": [_with_its_status]}}
    return httpx.AsyncClient(verify=certificates, timeout=timeout, follow_redirects=True, **about)


async def _with_its_status(response: Any) -> None:
    """Gateways answer 200 with an error in the body, which the client takes for a reply without text."""
    if response.status_code == 200 and re.match(rb'\s*\{\s*"error"\s*:', await response.aread()):
        code = re.search(rb'"code"\s*:\s*"?([45]\d\d)\b', response.content)
        response.status_code = int(code[1]) if code else 500


@functools.cache
def _httpx() -> tuple[Any, ssl.SSLContext]:
    """The library that google-genai itself uses, httpx2 from its version 3 on; and certificates, slow to read."""
    needs = importlib.metadata.requires("google-genai") or ()
    httpx = importlib.import_module("httpx2" if any(line.startswith("httpx2") for line in needs) else "httpx")
    return httpx, httpx.create_ssl_context()


def _retry_delay(error: Any) -> float | None:
    """Seconds that the service asks to wait (google.rpc.RetryInfo, or the header)."""
    for detail in _details(error):
        if str(detail.get("@type", "")).endswith("RetryInfo"):
            return services.seconds(detail.get("retryDelay"))
    return services.seconds((getattr(error.response, "headers", None) or {}).get("Retry-After"))


def _details(error: Any) -> list[dict]:
    """What the service tells of an error besides its message, quotas each for itself."""
    about = error.details if isinstance(error.details, dict) else {}
    about = about["error"] if isinstance(about.get("error"), dict) else about
    details = _objects(about.get("details"))
    return details + [quota for detail in details for quota in _objects(detail.get("violations"))]


def _objects(found: Any) -> list[dict]:
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _reply(response: Any) -> Reply:
    """The client's `text` and `parsed` are None, without a word, for whatever is out of the ordinary."""
    from google.genai import types

    counted = response.usage_metadata or types.GenerateContentResponseUsageMetadata()
    usage = Usage(
        prompt=counted.prompt_token_count,
        cached=counted.cached_content_token_count,
        output=(counted.candidates_token_count or 0) + (counted.thoughts_token_count or 0),
        total=counted.total_token_count,
    )
    model = response.model_version or ""
    if not response.candidates:
        feedback = response.prompt_feedback
        reason = getattr(feedback and feedback.block_reason, "name", "")
        finish = Finish.BLOCKED if reason else Finish.ERROR
        return Reply("", finish, usage, model, f"prompt blocked: {reason}" if reason else "no candidate")
    candidate = response.candidates[0]
    parts = (candidate.content and candidate.content.parts) or ()
    text = "".join(part.text for part in parts if part.text and not part.thought)
    finish, detail = services.finish_of(getattr(candidate.finish_reason, "name", None))
    return Reply(text, finish, usage, model, detail)
