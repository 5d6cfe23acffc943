"""Small HTTP servers on 127.0.0.1, for the time of a test."""

import contextlib
import threading


@contextlib.contextmanager
def serving(server):
    """`server` answers in a thread; its `url` is set."""
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
