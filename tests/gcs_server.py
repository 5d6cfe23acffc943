"""A small Google Cloud Storage on 127.0.0.1: as much of its JSON interface as gcsfs, TensorStore and etils use.

Generations count, and conditions on them hold: TensorStore relies on both where several writers meet. One bucket.
"""

import base64
import http.server
import json
import re
import threading
import urllib.parse

import google_crc32c

BUCKET = "bucket"


class Storage:
    """`address` is for STORAGE_EMULATOR_HOST and TENSORSTORE_GCS_HTTP_URL; `objects`: name -> (generation, bytes)."""

    def __init__(self):
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.uploads: dict[str, tuple[str, bytes]] = {}
        self.generation = 1_700_000_000_000_000
        self.lock = threading.Lock()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"storage": self}))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()

    def put(self, name, content):
        self.generation += 1
        self.objects[name] = (self.generation, content)
        return self.describe(name)

    def describe(self, name):
        generation, content = self.objects[name]
        checksum = base64.b64encode(google_crc32c.Checksum(content).digest()).decode()
        return {
            "kind": "storage#object",
            "id": f"{BUCKET}/{name}/{generation}",
            "name": name,
            "bucket": BUCKET,
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(content)),
            "crc32c": checksum,
            "etag": str(generation),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    storage: Storage

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._handle()

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

    def _handle(self):
        url = urllib.parse.urlsplit(self.path)
        query = {name: values[-1] for name, values in urllib.parse.parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.storage.lock:
            self._answer(url.path, query, body)

    def _answer(self, path, query, body):
        kind = "upload" if path.startswith("/upload/") else "object"
        path = re.sub(r"^/(upload|download)", "", path)
        match = re.fullmatch(r"/storage/v1/b(?:/([^/]+)(/o)?(?:/([^/]+?))?(/rewriteTo/b/[^/]+/o/([^/]+))?)?", path)
        if path.startswith("/batch"):
            return self._batch(body)
        if not match or (match[1] and match[1] != BUCKET):
            return self._json(404, {"error": {"code": 404, "message": "there is no such bucket"}})
        name = urllib.parse.unquote(match[3] or "")
        if kind == "upload":
            return self._upload(query, body)
        if not match[2]:
            return self._json(200, {"kind": "storage#bucket", "name": BUCKET, "id": BUCKET, "location": "US"})
        if not name:
            return self._list(query)
        if match[4]:
            made = self.storage.put(urllib.parse.unquote(match[5]), self.storage.objects[name][1])
            return self._json(200, {"done": True, "resource": made})
        if not self._holds(name, query):
            return self._json(
                304 if "ifGenerationNotMatch" in query else 412, {"error": {"code": 412, "message": "other"}}
            )
        if name not in self.storage.objects:
            return self._json(404, {"error": {"code": 404, "message": "there is no such object"}})
        if self.command == "DELETE":
            del self.storage.objects[name]
            return self._send(204, b"")
        if query.get("alt") == "media":
            return self._media(name)
        return self._json(200, self.storage.describe(name))

    def _holds(self, name, query):
        generation = self.storage.objects.get(name, (0, b""))[0]
        wanted, unwanted = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
        return (wanted is None or int(wanted) == generation) and (unwanted is None or int(unwanted) != generation)

    def _media(self, name):
        generation, content = self.storage.objects[name]
        headers = {"x-goog-generation": str(generation), "ETag": str(generation)}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return self._send(200, content, headers)
        size = len(content)
        start = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
        stop = min(int(wanted[2]) + 1, size) if wanted[1] and wanted[2] else size
        if start >= size:
            return self._send(416, b"")
        return self._send(206, content[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    def _upload(self, query, body):
        kind = query.get("uploadType")
        if kind == "resumable":
            if "upload_id" not in query:
                token = str(len(self.storage.uploads))
                self.storage.uploads[token] = (query.get("name") or json.loads(body)["name"], b"")
                where = f"{self.storage.address}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&upload_id={token}"
                return self._send(200, b"", {"Location": where})
            name, before = self.storage.uploads[query["upload_id"]]
            self.storage.uploads[query["upload_id"]] = (name, before + body)
            if (self.headers.get("Content-Range") or "").endswith("/*"):
                return self._send(308, b"", {"Range": f"bytes=0-{len(before + body) - 1}"})
            return self._json(200, self.storage.put(name, before + body))
        name, content = query.get("name"), body
        if kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])[1].encode()
            parts = [
                part.partition(b"\r\n\r\n" if b"\r\n\r\n" in part else b"\n\n")[2]
                for part in body.split(b"--" + boundary)
            ]
            name, content = json.loads(parts[1])["name"], parts[2].removesuffix(b"\n").removesuffix(b"\r")
        if not self._holds(name, query):
            return self._json(412, {"error": {"code": 412, "message": "another generation"}})
        return self._json(200, self.storage.put(name, content))

    def _list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for name in sorted(self.storage.objects):
            if not name.startswith(prefix):
                continue
            if not query.get("startOffset", "") <= name or not (name < query.get("endOffset", "\U0010ffff")):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self.storage.describe(name))
        return self._json(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def _batch(self, body):
        """Several deletions in one request."""
        boundary = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])[1]
        answers = []
        for number, path in enumerate(re.findall(r"DELETE (\S+) HTTP", body.decode()), 1):
            name = urllib.parse.unquote(path.split("/o/")[1].split("?")[0])
            status = "204 No Content" if self.storage.objects.pop(name, None) else "404 Not Found"
            answers.append(
                f"--{boundary}\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>\r\n\r\n"
                f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        content = ("".join(answers) + f"--{boundary}--\r\n").encode()
        return self._send(200, content, {"Content-Type": f"multipart/mixed; boundary={boundary}"})

    def _json(self, status, value):
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status, content, headers=None):
        self.send_response(status)
        for name, value in {"Content-Type": "application/octet-stream", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(content)
