"""A small Gemini on 127.0.0.1: the REST dialect that google-genai sends, with every way in which the service fails.

What it says is a function of the request alone (`brain`). How often and how it fails is drawn, anew at every call, so a
request that failed may be answered the next time. It keeps the account: `paid` counts, by request, the calls that the
service worked for, and `dollars` what they cost.
"""

import base64
import collections
import hashlib
import http.server
import json
import random
import socket
import struct
import threading
import time

PER_CALL = ("busy", "busy_plain", "error", "overloaded", "hang", "reset", "half")
# No waiting helps with these.
DAILY = {
    "@type": "type.googleapis.com/google.rpc.QuotaFailure",
    "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "quotaValue": "20"}],
}
PER_REPLY = ("truncated", "blocked", "blocked_prompt", "recitation", "schema", "empty", "refused")
KEY = "fake-key-that-must-not-be-seen-6b1f"


class Gemini:
    """`address` is the base URL. Failures: a share of the calls, of the given kinds.

    Attributes:
        brain: (body of a request) -> text of the reply.
        price: dollars per token of (prompt, output).
        latency: seconds that a call takes.
        jobs: how batch jobs end, one after the other; the last holds for all that follow: succeeded, partial, expired,
            failed.
    """

    def __init__(self, brain, failing=0.0, kinds=PER_CALL + PER_REPLY, seed=0, latency=0.0, price=(0.0, 0.0)):
        self.brain, self.failing, self.kinds, self.latency, self.price = brain, failing, kinds, latency, price
        self.jobs = ["succeeded"]
        self.polls_until_done = 1
        self.calls = 0
        self.bodies = []
        self.cancelled = []
        self.paid = collections.Counter()  # request -> calls with a reply that was sent
        self.good = collections.Counter()  # request -> replies without fault that were sent
        self.unheard = collections.Counter()  # request -> calls that were worked for, and never answered
        self.dollars = 0.0
        self.rejects = lambda body: False  # which requests are answered with 400, always
        self.forgets_jobs = False
        self.uncounted = False  # replies carry no usage
        self.nameless = False  # those of jobs carry no metadata
        self.most_at_once = self._at_once = 0
        self.told_to_wait: list[float] = []
        self.lock = threading.Lock()
        self._random = random.Random(seed)
        self._batches: dict[str, dict] = {}
        handler = type("Bound", (_Handler,), {"gemini": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        # A server looks this often whether it is to stop.
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()

    def draw(self):
        with self.lock:
            failing = self._random.random() < self.failing
            return self._random.choice(self.kinds) if failing else "good"

    def charge(self, body, response, heard=True):
        counted = response["usageMetadata"]
        with self.lock:
            (self.paid if heard else self.unheard)[identity(body)] += 1
            self.dollars += counted["promptTokenCount"] * self.price[0]
            self.dollars += counted["candidatesTokenCount"] * self.price[1]

    def response(self, body, kind):
        """What the service says, in one of its ways; `good` among them."""
        prompt = len(json.dumps(body)) // 4
        text, finish = self.brain(body), "STOP"
        if kind == "truncated":
            text, finish = text[: len(text) // 2], "MAX_TOKENS"
        elif kind == "schema":
            text = json.dumps({"something": "else"})
        elif kind == "empty":
            text = None
        elif kind == "refused":
            text = "I'm sorry, but I can't help with that."
        elif kind in ("blocked", "recitation"):
            text, finish = None, {"blocked": "PROHIBITED_CONTENT", "recitation": "RECITATION"}[kind]
        counted = {"promptTokenCount": prompt, "candidatesTokenCount": len(text or "") // 4}
        counted["totalTokenCount"] = sum(counted.values())
        content = {"role": "model", "parts": [{"text": "let me see", "thought": True}, {"text": text}] if text else []}
        about = {"usageMetadata": counted, "modelVersion": "fake-001", "responseId": "r"}
        if kind == "blocked_prompt":
            return about | {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
        return about | {"candidates": [{"content": content, "finishReason": finish, "index": 0}]}

    def create_batch(self, body):
        with self.lock:
            name = f"batches/{len(self._batches)}"
            how = self.jobs[min(len(self._batches), len(self.jobs) - 1)]
            self._batches[name] = {
                "name": name,
                "display": body["batch"]["displayName"],
                "requests": body["batch"]["inputConfig"]["requests"]["requests"],
                "polls": 0,
                "how": how,
            }
        return self.describe_batch(self._batches[name])

    def poll_batch(self, name):
        batch = self._batches[name]
        batch["polls"] += 1
        return self.describe_batch(batch)

    def list_batches(self):
        return {"operations": [self.describe_batch(batch) for batch in self._batches.values()]}

    def describe_batch(self, batch):
        metadata = {
            "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
            "name": batch["name"],
            "displayName": batch["display"],
            "state": "BATCH_STATE_RUNNING",
            "createTime": "2026-01-01T00:00:00Z",
        }
        operation = {"name": batch["name"], "metadata": metadata}
        if batch["polls"] < self.polls_until_done:
            return operation
        how = batch["how"]
        states = {"partial": "PARTIALLY_SUCCEEDED"}
        metadata["state"] = f"BATCH_STATE_{states.get(how, how.upper())}"
        if "responses" not in batch:
            entries = []
            for number, inlined in enumerate(batch["requests"]):
                entry = {} if self.nameless else {"metadata": inlined.get("metadata")}
                if how in ("expired", "cancelled", "failed") or how == "partial" and number % 3 == 0:
                    entry["error"] = {"code": 4, "message": "deadline exceeded"}
                else:
                    kind = self.draw()
                    kind = kind if kind in PER_REPLY else "good"
                    entry["response"] = self.response(inlined["request"], kind)
                    self.charge(inlined["request"], entry["response"])
                    if self.uncounted:
                        entry["response"].pop("usageMetadata")
                    self.good[identity(inlined["request"])] += kind == "good"
                entries.append(entry)
            batch["responses"] = entries[::-1]  # their order is not promised
        if how not in ("failed", "expired", "cancelled"):
            metadata["output"] = {"inlinedResponses": {"inlinedResponses": batch["responses"]}}
        return operation | {"done": True}


def identity(body):
    """Names what is asked, whatever the limit of the answer."""
    config = {name: value for name, value in (body.get("generationConfig") or {}).items() if name != "maxOutputTokens"}
    asked = [body.get("contents"), body.get("systemInstruction"), config]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def text_of(body):
    """(system prompt, prompt) of a request."""
    system = (body.get("systemInstruction") or {}).get("parts") or []
    contents = body["contents"] if isinstance(body["contents"], list) else [body["contents"]]
    return tuple(
        "".join(part.get("text", "") for part in parts)
        for parts in (system, [part for content in contents for part in content["parts"]])
    )


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address):
        pass  # clients are killed here


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gemini: Gemini

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.path.split("?")[0].removeprefix("/v1beta/")
        if path == "batches":
            return self._send(200, self.gemini.list_batches())
        if path in self.gemini._batches and not self.gemini.forgets_jobs:
            return self._send(200, self.gemini.poll_batch(path))
        self._send(404, _error(404, "NOT_FOUND", path))

    def do_POST(self):
        gemini = self.gemini
        if self.path.endswith(":cancel"):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            gemini.cancelled.append(self.path.removeprefix("/v1beta/").removesuffix(":cancel"))
            return self._send(200, {})
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        if self.headers.get("x-goog-api-key") != KEY:
            return self._send(400, _error(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."))
        if self.path.endswith("/models/gone:generateContent"):
            return self._send(404, _error(404, "NOT_FOUND", "models/gone is not found"))
        with gemini.lock:
            gemini.calls += 1
            gemini._at_once += 1
            gemini.most_at_once = max(gemini.most_at_once, gemini._at_once)
        try:
            if self.path.endswith(":batchGenerateContent"):
                self._send(200, gemini.create_batch(body))
            else:
                gemini.bodies.append(body)
                self._answer(body, gemini.draw())
        finally:
            with gemini.lock:
                gemini._at_once -= 1

    def _answer(self, body, kind):
        gemini = self.gemini
        time.sleep(gemini.latency)
        if gemini.rejects(body):
            return self._send(400, _error(400, "INVALID_ARGUMENT", "something is wrong with this one"))
        match kind:
            case "busy":
                info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.05s"}
                self._send(429, _error(429, "RESOURCE_EXHAUSTED", "slower, please", [info]))
            case "busy_plain":
                self._send(429, _error(429, "RESOURCE_EXHAUSTED", "slower, please"))
            case "error":
                self._send(500, _error(500, "INTERNAL", "an internal error"))
            case "daily":  # with a delay of seconds, as the service sends it
                info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "23s"}
                self._send(429, _error(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota", [DAILY, info]))
            case "no_credit":
                self._send(402, _error(402, "PAYMENT_REQUIRED", "pay first"))
            case "error_in_200":
                self._send(200, _error(503, "UNAVAILABLE", "the model is overloaded"))
            case "bare_error":
                self._send(500, {"error": "oops"})
            case "list_error":
                self._send(502, ["oops"])
            case "nothing":
                self._send(200, {})
            case "overloaded":
                self._send(503, _error(503, "UNAVAILABLE", "the model is overloaded"))
            case "hang" | "reset" | "half":
                response = gemini.response(body, "good")
                gemini.charge(body, response, heard=False)
                if kind == "hang":
                    time.sleep(3)
                elif kind == "half":
                    self._send(200, response, cut=True)
                # A reset, not an orderly end.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
            case _:
                response = gemini.response(body, kind)
                gemini.charge(body, response)
                with gemini.lock:
                    gemini.good[identity(body)] += kind == "good"
                if gemini.uncounted:
                    response.pop("usageMetadata")
                self._send(200, response)

    def _send(self, status, value, cut=False):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.wfile.flush()


def _error(code, status, message, details=()):
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


def digest(*parts):
    """Letters and digits that depend on the parts alone."""
    return base64.b32encode(hashlib.sha256(repr(parts).encode()).digest()).decode().lower().rstrip("=")
