"""A small Google Cloud Storage on 127.0.0.1: as much of its JSON interface as gcsfs, TensorStore and etils use.

Generations count, and conditions on them hold: TensorStore relies on both where several writers meet. One bucket.
"""

import base64
import json
import re
import urllib.parse

import google_crc32c

from tests.small_server import Handler, SmallServer

BUCKET = "bucket"


class Storage(SmallServer):
    """`address` is for STORAGE_EMULATOR_HOST and TENSORSTORE_GCS_HTTP_URL; `objects`: name -> (generation, bytes)."""

    def __init__(self):
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.uploads: dict[str, tuple[str, bytes]] = {}
        self.generation = 1_700_000_000_000_000
        super().__init__(_Handler)

    def put(self, name, content):
        self.generation += 1
        self.objects[name] = (self.generation, content)
        return self.describe(name)

    def describe(self, name):
        generation, content = self.objects[name]
        same = {"metageneration": "1", "timeCreated": "2026-01-01T00:00:00.000Z", "updated": "2026-01-01T00:00:00.000Z"}
        return same | {
            "kind": "storage#object",
            "id": f"{BUCKET}/{name}/{generation}",
            "name": name,
            "bucket": BUCKET,
            "generation": str(generation),
            "etag": str(generation),
            "size": str(len(content)),
            "crc32c": base64.b64encode(google_crc32c.Checksum(content).digest()).decode(),
        }


class _Handler(Handler):
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = {name: values[-1] for name, values in urllib.parse.parse_qs(url.query).items()}
        body = self.body()
        with self.server.lock:
            self._answer(url.path, query, body)

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

    def _answer(self, path, query, body):
        if path.startswith("/batch"):
            return self._batch(body)
        kind, path = path.startswith("/upload/"), re.sub(r"^/(upload|download)", "", path)
        match = re.fullmatch(r"/storage/v1/b(?:/([^/]+)(/o)?(?:/([^/]+?))?(/rewriteTo/b/[^/]+/o/([^/]+))?)?", path)
        if not match or (match[1] and match[1] != BUCKET):
            return self._error(404, "there is no such bucket")
        name = urllib.parse.unquote(match[3] or "")
        if kind:
            return self._upload(query, body)
        if not match[2]:
            return self.send(200, {"kind": "storage#bucket", "name": BUCKET, "id": BUCKET, "location": "US"})
        if not name:
            return self._list(query)
        if match[4]:
            made = self.server.put(urllib.parse.unquote(match[5]), self.server.objects[name][1])
            return self.send(200, {"done": True, "resource": made})
        if not self._holds(name, query):
            return self._error(304 if "ifGenerationNotMatch" in query else 412, "another generation")
        if name not in self.server.objects:
            return self._error(404, "there is no such object")
        if self.command == "DELETE":
            del self.server.objects[name]
            return self.send(204, b"")
        return self._media(name) if query.get("alt") == "media" else self.send(200, self.server.describe(name))

    def _holds(self, name, query):
        generation = self.server.objects.get(name, (0, b""))[0]
        wanted, unwanted = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
        return (wanted is None or int(wanted) == generation) and (unwanted is None or int(unwanted) != generation)

    def _media(self, name):
        generation, content = self.server.objects[name]
        headers = {"x-goog-generation": str(generation), "ETag": str(generation)}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return self.send(200, content, headers)
        size = len(content)
        start = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
        stop = min(int(wanted[2]) + 1, size) if wanted[1] and wanted[2] else size
        if start >= size:
            return self.send(416, b"")
        return self.send(206, content[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    def _upload(self, query, body):
        kind = query.get("uploadType")
        if kind == "resumable":
            if "upload_id" not in query:
                token = str(len(self.server.uploads))
                self.server.uploads[token] = (query.get("name") or json.loads(body)["name"], b"")
                where = f"{self.server.address}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&upload_id={token}"
                return self.send(200, b"", {"Location": where})
            name, before = self.server.uploads[query["upload_id"]]
            self.server.uploads[query["upload_id"]] = (name, before + body)
            if (self.headers.get("Content-Range") or "").endswith("/*"):
                return self.send(308, b"", {"Range": f"bytes=0-{len(before + body) - 1}"})
            return self.send(200, self.server.put(name, before + body))
        name, content = query.get("name"), body
        if kind == "multipart":
            parts = body.split(b"--" + self._boundary().encode())
            parts = [part.partition(b"\r\n\r\n" if b"\r\n\r\n" in part else b"\n\n")[2] for part in parts]
            name, content = json.loads(parts[1])["name"], parts[2].removesuffix(b"\n").removesuffix(b"\r")
        if not self._holds(name, query):
            return self._error(412, "another generation")
        return self.send(200, self.server.put(name, content))

    def _boundary(self):
        return re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])[1]

    def _list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for name in sorted(self.server.objects):
            within = query.get("startOffset", "") <= name < query.get("endOffset", "\U0010ffff")
            if not (within and name.startswith(prefix)):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                items.append(self.server.describe(name))
        self.send(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def _batch(self, body):
        """Several deletions in one request."""
        boundary, answers = self._boundary(), []
        for number, path in enumerate(re.findall(r"DELETE (\S+) HTTP", body.decode()), 1):
            name = urllib.parse.unquote(path.split("/o/")[1].split("?")[0])
            status = "204 No Content" if self.server.objects.pop(name, None) else "404 Not Found"
            answers.append(
                f"--{boundary}\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>\r\n\r\n"
                f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        content = ("".join(answers) + f"--{boundary}--\r\n").encode()
        return self.send(200, content, {"Content-Type": f"multipart/mixed; boundary={boundary}"})

    def _error(self, status, message):
        self.send(status, {"error": {"code": status, "message": message}})
