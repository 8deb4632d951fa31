"""A server of files on this machine that can be told to fail."""

import http.server
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Server:
    """Serves ``folder``; each request for a file's content may fail by ``draw`` with probability ``failing``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failing = 0.0
        self.ranges = True
        self.tells_length = True
        self.head_status = 200
        self.get_status = 200
        self.draw = random.Random(0)
        self.requests: list[str] = []
        self.url = ""


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Runs a server until the block ends."""
    state = Server(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Not on the terminal."""

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            state.requests.append(f"{self.command} {self.path}")
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            status = state.get_status if with_body else state.head_status
            if status != 200:
                self.send_error(status)
                return
            fails = with_body and state.draw.random() < state.failing
            if fails and state.draw.random() < 0.5:
                self.send_error(503)
                return
            content = path.read_bytes()
            begin = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0]) if state.ranges else 0
            if begin >= len(content) > 0:
                self.send_error(416)
                return
            self.send_response(206 if begin else 200)
            if state.tells_length:
                self.send_header("Content-Length", str(len(content) - begin))
            self.send_header("ETag", f'"{hash(content)}"')
            self.end_headers()
            if with_body:
                body = content[begin:]
                self.wfile.write(body[: state.draw.randrange(len(body) + 1)] if fails else body)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            running.shutdown()
            thread.join()
