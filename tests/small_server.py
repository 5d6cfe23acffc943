"""What the servers of these tests have in common: on 127.0.0.1, in threads, silent."""

import http.server
import json
import threading


class SmallServer(http.server.ThreadingHTTPServer):
    """Runs until `stop`. Handlers find it as their `server`."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.lock = threading.Lock()
        # A server looks this often whether it is to stop.
        threading.Thread(target=self.serve_forever, args=[0.02], daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        pass  # clients are killed here


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def send(self, status, content, headers=(), length=None):
        """`content` in bytes, or as JSON; no more than `length` bytes of it."""
        is_json = not isinstance(content, bytes)
        content = json.dumps(content).encode() if is_json else content
        self.send_response(status)
        kind = {"Content-Type": "application/json" if is_json else "application/octet-stream"}
        for name, value in {**kind, "Content-Length": str(len(content)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(content[:length])
            self.wfile.flush()
