"""A small Gemini on 127.0.0.1: the REST dialect that google-genai sends, with every way in which the service fails.

What it says is a function of the request alone (`brain`). How often and how it fails is drawn, anew at every call, so a
request that failed may be answered the next time. It keeps the account: `paid` counts, by request, the calls with a
reply that was sent, `good` those without fault, and `dollars` what it worked for, heard or not.
"""

import base64
import collections
import hashlib
import json
import random
import select
import socket
import struct
import time

from tests.small_server import Handler, SmallServer

KEY = "fake-key-that-must-not-be-seen-6b1f"
PER_CALL = ("busy", "busy_plain", "error", "overloaded", "hang", "reset", "half")
PER_REPLY = ("truncated", "blocked", "blocked_prompt", "recitation", "schema", "empty", "refused")
_GOOGLE = "type.googleapis.com/google."


def _error(code, status, message, *details):
    return code, {"error": {"code": code, "message": message, "status": status, "details": details}}


def _delay(seconds):
    return {"@type": f"{_GOOGLE}rpc.RetryInfo", "retryDelay": f"{seconds}s"}


_A_DAY = {
    "@type": f"{_GOOGLE}rpc.QuotaFailure",
    "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "quotaValue": "20"}],
}
_OVERLOADED = _error(503, "UNAVAILABLE", "the model is overloaded")
_ERRORS = {
    "busy": _error(429, "RESOURCE_EXHAUSTED", "slower, please", _delay(0.01)),
    "busy_plain": _error(429, "RESOURCE_EXHAUSTED", "slower, please"),
    "error": _error(500, "INTERNAL", "an internal error"),
    "overloaded": _OVERLOADED,
    "error_in_200": (200, _OVERLOADED[1]),
    "bare_error": (500, {"error": "oops"}),
    "list_error": (502, ["oops"]),
    "nothing": (200, {}),
    # No waiting helps with these. That of a day comes with a delay of seconds.
    "daily": _error(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota", _A_DAY, _delay(23)),
    "no_credit": _error(402, "PAYMENT_REQUIRED", "pay first"),
}


class Gemini(SmallServer):
    """`address` is the base URL. Failures: a share of the calls, of the given kinds.

    Attributes:
        brain: (body of a request) -> text of the reply.
        price: dollars per token of (prompt, output).
        latency: seconds that a call takes.
        jobs: how batch jobs end, one after the other; the last holds for all that follow: succeeded, partial, expired,
            cancelled, failed.
    """

    def __init__(self, brain, failing=0.0, kinds=PER_CALL + PER_REPLY, seed=0, latency=0.0, price=(0.0, 0.0)):
        self.brain, self.failing, self.kinds, self.latency, self.price = brain, failing, kinds, latency, price
        self.jobs = ["succeeded"]
        self.polls_until_done = 1
        self.forgets_jobs = False
        self.uncounted = False  # replies carry no usage
        self.nameless = False  # those of jobs carry no metadata
        self.calls, self.dollars, self.bodies, self.cancelled = 0, 0.0, [], []
        self.drawn, self.paid, self.good = collections.Counter(), collections.Counter(), collections.Counter()
        self._random = random.Random(seed)
        self.batches = {}
        super().__init__(_Handler)

    def draw(self):
        with self.lock:
            failures = self.drawn.total() - self.drawn["good"]
            kind = self.kinds[failures % len(self.kinds)] if self._random.random() < self.failing else "good"
            self.drawn[kind] += 1
            return kind

    def response(self, body, kind, heard=True):
        """What the service says, in one of its ways, and charges for."""
        text, finish = self.brain(body), "STOP"
        match kind:
            case "truncated":
                text, finish = text[: len(text) // 2], "MAX_TOKENS"
            case "schema":
                text = json.dumps({"something": "else"})
            case "empty":
                text = None
            case "refused":
                text = "I'm sorry, but I can't help with that."
            case "blocked" | "recitation":
                text, finish = None, {"blocked": "PROHIBITED_CONTENT", "recitation": "RECITATION"}[kind]
        tokens = len(json.dumps(body)) // 4, len(text or "") // 4
        with self.lock:
            self.paid[identity(body)] += heard
            self.good[identity(body)] += heard and kind == "good"
            self.dollars += sum(count * price for count, price in zip(tokens, self.price, strict=True))
        counted = dict(zip(("promptTokenCount", "candidatesTokenCount"), tokens, strict=True))
        about = {"modelVersion": "fake-001", "responseId": "r"}
        if not self.uncounted:
            about["usageMetadata"] = counted | {"totalTokenCount": sum(tokens)}
        if kind == "blocked_prompt":
            return about | {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
        parts = [{"text": "<document> {", "thought": True}, {"text": text}] if text else []
        return about | {"candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": finish}]}

    def create_batch(self, batch):
        name = f"batches/{len(self.batches)}"
        how = self.jobs[min(len(self.batches), len(self.jobs) - 1)]
        requests = batch["inputConfig"]["requests"]["requests"]
        self.batches[name] = {"display": batch["displayName"], "requests": requests, "polls": 0, "how": how}
        return self.describe_batch(name)

    def list_batches(self):
        return {"operations": [self.describe_batch(name) for name in self.batches]}

    def describe_batch(self, name, polls=0):
        batch = self.batches[name]
        batch["polls"] += polls
        how = batch["how"] if batch["polls"] >= self.polls_until_done else "running"
        metadata = {
            "@type": f"{_GOOGLE}ai.generativelanguage.v1main.GenerateContentBatch",
            "name": name,
            "displayName": batch["display"],
            "state": f"BATCH_STATE_{'PARTIALLY_SUCCEEDED' if how == 'partial' else how.upper()}",
            "createTime": "2026-01-01T00:00:00Z",
        }
        if how in ("succeeded", "partial"):
            if "responses" not in batch:  # their order is not promised
                entries = [self._entry(how, number, asked) for number, asked in enumerate(batch["requests"])]
                batch["responses"] = entries[::-1]
            metadata["output"] = {"inlinedResponses": {"inlinedResponses": batch["responses"]}}
        return {"name": name, "metadata": metadata} | ({} if how == "running" else {"done": True})

    def _entry(self, how, number, asked):
        entry = {} if self.nameless else {"metadata": asked.get("metadata")}
        if how == "partial" and number % 3 == 0:
            return entry | {"error": {"code": 4, "message": "deadline exceeded"}}
        kind = self.draw()
        return entry | {"response": self.response(asked["request"], kind if kind in PER_REPLY else "good")}


def identity(body):
    """Names what is asked, whatever the limit of the answer."""
    config = {name: value for name, value in (body.get("generationConfig") or {}).items() if name != "maxOutputTokens"}
    asked = [body.get("contents"), body.get("systemInstruction"), config]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def text_of(body):
    """(system prompt, prompt) of a request."""
    system = (body.get("systemInstruction") or {}).get("parts") or []
    contents = body["contents"] if isinstance(body["contents"], list) else [body["contents"]]
    prompt = [part for content in contents for part in content["parts"]]
    return tuple("".join(part.get("text", "") for part in parts) for parts in (system, prompt))


def digest(*parts):
    """Letters and digits that depend on the parts alone."""
    return base64.b32encode(hashlib.sha256(repr(parts).encode()).digest()).decode().lower().rstrip("=")


class _Handler(Handler):
    def do_GET(self):
        gemini, path = self.server, self.path.split("?")[0].removeprefix("/v1beta/")
        if path == "batches":
            return self.send(200, gemini.list_batches())
        if path in gemini.batches and not gemini.forgets_jobs:
            return self.send(200, gemini.describe_batch(path, polls=1))
        self.send(*_error(404, "NOT_FOUND", path))

    def do_POST(self):
        gemini, body = self.server, json.loads(self.body() or b"{}")
        if self.path.endswith(":cancel"):
            gemini.cancelled.append(self.path.removeprefix("/v1beta/").removesuffix(":cancel"))
            return self.send(200, {})
        if (key := self.headers.get("x-goog-api-key")) != KEY:
            return self.send(*_error(400, "INVALID_ARGUMENT", f"API key {key} not valid. Please pass a valid API key."))
        if self.path.endswith("/models/gone:generateContent"):
            return self.send(*_error(404, "NOT_FOUND", "models/gone is not found"))
        with gemini.lock:
            gemini.calls += 1
        if self.path.endswith(":batchGenerateContent"):
            return self.send(200, gemini.create_batch(body["batch"]))
        gemini.bodies.append(body)
        time.sleep(gemini.latency)
        kind = gemini.draw()
        if kind in _ERRORS:
            return self.send(*_ERRORS[kind])
        heard = kind not in ("hang", "reset", "half")
        response = gemini.response(body, kind if heard else "good", heard)
        if heard:
            return self.send(200, response)
        if kind == "hang":  # until the client has had enough
            select.select([self.connection], [], [], 3)
        elif kind == "half":
            self.send(200, response, length=100)
        # A reset, not an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
