"""No test here sees the user's cache or settings; a server on this machine stands for OpenAI's."""

import hashlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from clip.weights import MODELS, OPENAI


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path) -> None:
    for name in ("CLIP_MIRROR", "CLIP_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


class Server:
    """Serves `files`; the first answers are cut after `cuts` bytes each.

    `requests` are (path, Range header).
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.ranges = True
        self.chunked = False
        self.headers: dict[str, str] = {}  # further ones, or others
        self.status = 0  # other than the usual
        self.delay = 0.0
        self.requests: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append((request.path, request.headers["Range"]))
        time.sleep(self.delay)
        content = self.files.get(request.path.partition("?")[0])
        if content is None:
            request.send_error(404, "Not Found")
            return
        start = (
            int(request.headers["Range"][len("bytes=") : -1])
            if self.ranges and request.headers["Range"]
            else 0
        )
        if start and start >= len(content) or self.status == 416:
            request.send_response(416)
            if self.headers:
                request.send_header("Content-Range", f"bytes */{len(content)}")
            request.end_headers()
            self.status = 0
            return
        request.send_response(self.status or (206 if start else 200))
        if self.chunked:
            request.send_header("Transfer-Encoding", "chunked")
        else:
            request.send_header(
                "Content-Length", self.headers.get("Content-Length") or str(len(content) - start)
            )
        request.end_headers()
        body = content[start:]
        body = body[: self.cuts.pop(0)] if self.cuts else body
        request.wfile.write(b"%x\r\n%s\r\n" % (len(body) + 9, body) if self.chunked else body)

    def add_model(self, monkeypatch, name: str, content: bytes) -> str:
        """Make `content` the archive of a name of `MODELS`; returns its path on this server."""
        file = MODELS[name].rsplit("/", 1)[1]
        path = f"/{hashlib.sha256(content).hexdigest()}/{file}"
        monkeypatch.setitem(MODELS, name, OPENAI + path)
        self.files[path] = content
        return path


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(
        target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()
