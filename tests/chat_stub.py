"""A chat server on loopback that says what a test wants, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from mmemb.rationales import NO_DRAW, ServerWorker
from mmemb.records import GREEDY, SHORT, Media, Side

KEY = "sk-planted/0123456789"
SIDES = [Side(text="Paris"), Side(media=(Media("image", "0" * 64),)), Side(text="the Nile")]
SEEDS = torch.tensor([[GREEDY, 21, 22], [GREEDY, 23, 24], [2**62 + 25, 26, NO_DRAW]])
GOOD = "It is France. => France"


@dataclass(frozen=True)
class Said:
    """One answer; `drop` hangs up instead, `short` before the end of the body.

    `drip` replaces all of it: bytes for the wire, one piece after the other, `delay_s` before each.
    """

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drop: bool = False
    short: bool = False
    drip: Iterable[bytes] | None = None


def chat(
    content: Any, finish: str = "stop", usage: Any = None, delay_s: float = 0.0, **message: Any
) -> Said:
    """A chat completion; `message` are further fields of its message."""
    choice = {"message": {"role": "assistant", "content": content} | message}
    data = {"choices": [choice | {"finish_reason": finish}], "usage": usage}
    return Said(json.dumps(data).encode(), delay_s=delay_s)


class Stub:
    """What was asked, in order of arrival, and how to answer: by number and body.

    Of dripped answers: the bytes sent, and how often the other side hung up meanwhile.
    """

    def __init__(self, answer: Callable[[int, dict[str, Any]], Said]) -> None:
        self.answer, self.url = answer, ""
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.times: list[float] = []
        self.active = self.most_active = 0
        self.over, self.lock = threading.Event(), threading.Lock()
        self.sent, self.hung_up = 0, threading.Semaphore(0)

    def take(self, head: str, body: dict[str, Any]) -> Said:
        with self.lock:
            self.bodies.append(body)
            self.heads.append(head)
            self.times.append(time.monotonic())
            self.active += 1
            self.most_active = max(self.most_active, self.active)
            number = len(self.bodies) - 1
        try:
            said = self.answer(number, body)
            if said.drip is None:
                self.over.wait(said.delay_s)
            return said
        finally:
            with self.lock:
                self.active -= 1


@contextmanager
def serving(answer: Callable[[int, dict[str, Any]], Said]) -> Iterator[Stub]:
    """Runs a stub for the length of a test."""
    stub = Stub(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            self._say(stub.take(f"{self.requestline}\n{self.headers}", json.loads(content)))

        def do_CONNECT(self) -> None:
            self._say(stub.take(f"{self.requestline}\n{self.headers}", {}))

        def _say(self, said: Said) -> None:
            self.close_connection = True
            if said.drop:
                return
            if said.drip is not None:
                self._drip(said.drip, said.delay_s)
                return
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said.body) + said.short))
            self.end_headers()
            self.wfile.write(said.body)

        def _drip(self, pieces: Iterable[bytes], delay_s: float) -> None:
            try:
                for piece in pieces:
                    self.wfile.write(piece)
                    stub.sent += len(piece)
                    if stub.over.wait(delay_s):
                        return
            except OSError:
                stub.hung_up.release()

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass  # whoever asked has hung up, as some tests want it

    server = Server(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield stub
    finally:
        stub.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def write_prompts(folder: Path) -> Path:
    """Prompt files of every form."""
    examples = [{"query": "Rome", "think": "It is Italy.", "answer": "Italy"}]
    data = {"system": "Name it.", "examples": examples, "concepts": ["country:it"]}
    for name, form in {
        "arrow.json": {"opening": "", "between": " => ", "closing": ""},
        "tags.json": {},
        "short.json": {"opening": "", "between": "", "closing": "", "depth": SHORT},
    }.items():
        (folder / name).write_text(json.dumps(data | form))
    return folder


def worker(folder: Path, url: str, prompt: str = "arrow.json", **more: Any) -> ServerWorker:
    settings = {"concurrency": 4, "timeout_s": 90.0, "retries": 3, "backoff_s": 0.01} | more
    return ServerWorker(url, "tiny", str(folder / prompt), **settings)
