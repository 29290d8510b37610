"""Replies of chat servers, as bytes on a socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Sequence
from random import Random
from typing import ClassVar, final

from mmemb.rationales.chat_api.client import ChatClient
from mmemb.rationales.chat_api.reply import MOST_TOKENS
from tests.fuzzing.kind import Kind
from tests.fuzzing.mutations import mutate_bytes, mutate_json
from tests.fuzzing.texts import check_texts

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
_SPLIT = b"\r\n\r\n"


@final
class Servers(Kind):
    """All that a server says to one request; then it hangs up."""

    name: ClassVar[str] = "servers"

    def make_seeds(self) -> Sequence[bytes]:
        self._server: socket.socket | None = None
        message = {"role": "assistant", "content": "It is France. => France", "reasoning": "why"}
        data = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": None}
        body = json.dumps(data | {"usage": {"completion_tokens": 9}}).encode()
        chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        return [
            _HEAD + b"Content-Length: %d" % len(body) + _SPLIT + body,
            _HEAD + b"Transfer-Encoding: chunked" + _SPLIT + chunk,
            _HEAD + b"Connection: close" + _SPLIT + body,
            b"HTTP/1.1 100 Continue" + _SPLIT + _HEAD + b"Connection: close" + _SPLIT + body,
        ]

    def mutate(self, data: bytes, random: Random) -> bytes:
        head, split, body = data.rpartition(_SPLIT)
        if b"chunked" not in head and random.random() < 0.6:
            body = mutate_json(body, random)
            return _HEAD + b"Content-Length: %d" % len(body) + _SPLIT + body
        status = random.choice((b"200", b"204", b"301", b"401", b"429", b"500", b"999", b"-1"))
        more = random.choice((
            b"Retry-After: 0", b"Location: /", b"Set-Cookie: a=b", b"Content-Encoding: gzip",
            b"Content-Length: 5", b"Content-Length: -1", b"Transfer-Encoding: gzip, chunked",
        ))  # fmt: skip
        match random.randrange(5):
            case 0:
                return data.replace(b"200", status, 1)
            case 1:
                return data.replace(b"\r\n", b"\r\n" + more + b"\r\n", 1)
            case _:
                return mutate_bytes(data, random, self.seeds)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def marks(self, data: bytes) -> Sequence[str]:
        return ("The chat server http://127.0.0.1:",)

    def read(self, data: bytes) -> None:
        if self._server is None:  # here, in the process that reads
            self._server = socket.create_server(("127.0.0.1", 0))
            self._server.settimeout(20)
        serving = threading.Thread(target=_answer, args=(self._server, data))
        serving.start()
        port = self._server.getsockname()[1]
        client = ChatClient(f"http://127.0.0.1:{port}/v1", "NO_KEY", 1, 5.0, 0, 0.0)
        try:
            (reply,) = client.replies([{"model": "m"}])
        finally:
            serving.join()
        check_texts((reply.content, reply.reasoning))
        assert type(reply.finished) is bool
        assert 0 <= reply.num_tokens <= MOST_TOKENS


def _answer(server: socket.socket, data: bytes) -> None:
    line, _ = server.accept()
    with line:
        line.settimeout(20)
        while _SPLIT not in line.recv(65536):
            pass
        try:
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            while line.recv(65536):
                pass
        except OSError:
            pass  # it has hung up
