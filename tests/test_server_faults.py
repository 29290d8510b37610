"""ServerWorker where something goes wrong: faults, failing draws, redirects, keys, proxies."""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mmemb.rationales import ServerError, ServerWorker
from mmemb.rationales.chat_reply import MOST_TOKENS, Reply, cut
from tests.chat_stub import GOOD, KEY, SEEDS, SIDES, Said, chat, serving, worker, write_prompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("server"))


def error_of(writer: ServerWorker, num_draws: int = 1) -> str:
    with pytest.raises(ServerError) as caught:
        writer.write(SIDES[:1], torch.arange(num_draws)[None])
    return str(caught.value)


# what goes wrong


def test_faults_that_pass_are_tried_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = [
        Said(b"", drop=True),
        Said(b"busy", 429, {"Retry-After": "0.2"}),
        Said(b"busy", 503, {"Retry-After": "soon"}),
        chat(GOOD),
    ]
    with serving(lambda number, body: said[number]) as stub:
        (pool,) = worker(folder, stub.url).write(SIDES[:1], SEEDS[:1, :1])
    assert pool[0].answer == "France"
    assert stub.times[2] - stub.times[1] >= 0.2
    assert stub.bodies == stub.bodies[:1] * 4
    assert len(caplog.records) == 1, "one warning, however many faults"


@pytest.mark.parametrize(
    ("said", "num_tries", "error"),
    [
        (Said(b"out of memory", 500), 4, r"answered 500: 'out of memory' \(4 tries\)\. Look into"),
        (Said(b"", drop=True), 4, r"did not answer: 'Remote end closed .* \(4 tries\)\. Start it"),
        (Said(b"{}", short=True), 4, r"did not answer: 'IncompleteRead"),
        (Said(b"late", delay_s=0.5), 4, r"did not answer: 'timed out' \(4 tries\)"),
        (Said(b"", 400), 1, r"answered 400: nothing\. Check `url`"),
        (Said(b"no\n such \x1b[31mmodel", 404), 1, r"answered 404: 'no such \[31mmodel'\. Check"),
        (Said(b"who", 401), 1, r"answered 401: 'who'\. Put a key .* into \$MMEMB_API_KEY"),
        (Said(b"", 429, {"Retry-After": "86400"}), 1, "asks to wait 86400 s"),
        (Said(b"<html>" * 99), 2, rf"\(no JSON\): '{'<html>' * 33}<h' \(2 tries\)"),
        (Said(b'{"error": "overloaded"}'), 2, r"\(no choices with a message\): '{\"error"),
        (Said(b"[" * 100_000), 2, "no JSON"),
        (chat(None), 2, "content is NoneType, no text"),
        (chat([{"type": "text"}]), 2, "content is list, no text"),
    ],
)
def test_a_draw_that_fails_for_good_fails_the_call(
    folder: Path, said: Said, num_tries: int, error: str
) -> None:
    with serving(lambda number, body: said) as stub:
        message = error_of(worker(folder, stub.url, timeout_s=0.1 if said.delay_s else 30.0))
    assert message.startswith(f"The chat server {stub.url} ")
    assert re.search(error, message), message
    assert len(stub.bodies) == num_tries


def test_a_server_that_is_not_there_is_named(folder: Path) -> None:
    with serving(lambda number, body: chat(GOOD)) as stub:
        pass
    message = error_of(worker(folder, stub.url, retries=1))
    assert message.startswith(f"The chat server {stub.url} did not answer: '[Errno")
    assert "Connection refused' (2 tries). Start it" in message


def test_one_failure_ends_what_is_under_way(folder: Path) -> None:
    """Requests that wait for a reply, for another try and for their turn."""

    def answer(number: int, body: dict[str, Any]) -> Said:
        if body["seed"] == 3:
            return Said(b"no", 400, delay_s=0.2)
        return Said(b"", 503, {"Retry-After": "60"}) if body["seed"] == 2 else chat("", delay_s=60)

    with serving(answer) as stub:
        started = time.monotonic()
        assert "answered 400" in error_of(worker(folder, stub.url), 40)
        assert time.monotonic() - started < 20, "nobody waited for a minute"
        assert len(stub.bodies) <= 4


def test_redirects_are_not_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMEMB_API_KEY", KEY)
    with serving(lambda number, body: chat(GOOD)) as other:
        moved = Said(b"", 307, {"Location": other.url})
        with serving(lambda number, body: moved) as stub:
            assert "Redirects are not followed" in error_of(worker(folder, stub.url))
    assert not other.bodies


@pytest.mark.parametrize(
    ("content", "counted", "num_tokens"),
    [
        ("word " * 2_000_000, 5, MOST_TOKENS),
        (f"why => {'x' * 3_200_000}", 5, 100_000),
        ("why => France", 10**30, MOST_TOKENS),
        ("why => France", 500, 500),
        ("why => France", True, 3),
    ],
    ids=["many words", "a long word", "a huge count", "hidden thoughts", "no count"],
)
def test_a_count_of_tokens_is_not_believed(
    folder: Path, content: str, counted: Any, num_tokens: int
) -> None:
    said = chat(content, usage={"completion_tokens": counted})
    with serving(lambda number, body: said) as stub:
        ((draw,),) = worker(folder, stub.url, max_new_tokens=10).write(SIDES[:1], SEEDS[:1, 1:2])
    assert draw.num_tokens == num_tokens
    assert len(draw.text) < 400, "what was not asked for is not written down"
    assert bool(draw.answer) == (counted != 5), "nor is it an answer"


def test_a_runaway_thought_is_cut_as_well() -> None:
    reply = cut(Reply("France", "why " * 1000, 5, True), 10)
    assert reply == Reply("France", ("why " * 80), 5, False)
    assert cut(Reply("\n" * 1000 + "France", "why", 5, True), 10).finished


# the key


def test_the_key_is_in_one_header_and_nowhere_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said = [
        Said(f"slow down, {KEY}".encode(), 429),
        Said(f"{KEY} is no key".encode()),
        Said(f"{'x' * 190}{KEY}".encode(), 401),  # what is cut off is no part of it either
    ]
    with serving(lambda number, body: said[number]) as stub:
        writer = worker(folder, stub.url, api_key_env="OTHER_KEY")
        monkeypatch.setenv("OTHER_KEY", f"{KEY}\n")  # read when it is needed, not before
        message = error_of(writer)
    assert all(head.count(KEY) == 1 for head in stub.heads)
    assert all(f"Authorization: Bearer {KEY}\n" in head for head in stub.heads)
    shown = [message, caplog.text, json.dumps(writer.settings()), repr(vars(writer))]
    shown += map(json.dumps, stub.bodies)
    assert not [text for text in shown if KEY in text or KEY[:8] in text]
    assert "slow down, ***" in caplog.text
    assert message.endswith("$OTHER_KEY.")


def test_without_a_key_none_is_sent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMEMB_API_KEY", raising=False)
    with serving(lambda number, body: chat(GOOD)) as stub:
        worker(folder, stub.url).write(SIDES[:1], SEEDS[:1, :1])
    assert "Authorization" not in stub.heads[0]


def test_a_broken_key_is_not_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMEMB_API_KEY", f"{KEY}\r\nHost: other")
    message = error_of(worker(folder, "http://127.0.0.1:1/v1"))
    assert message.startswith("The key in $MMEMB_API_KEY holds blanks")
    assert KEY not in message


def test_a_proxy_sees_the_host_of_an_https_server_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMEMB_API_KEY", KEY)
    for name in ("NO_PROXY", "no_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(lambda number, body: Said(b"", 502)) as stub:
        monkeypatch.setenv("https_proxy", stub.url.replace("http://", "http://me:pw@")[:-3])
        writer = worker(folder, "https://models.invalid/v1", retries=0)
        assert "did not answer: 'Tunnel connection failed: 502" in error_of(writer)
        writer = worker(folder, "https://127.0.0.1:1/v1", retries=0)
        assert "refused" in error_of(writer), "this machine needs none"
    (head,) = stub.heads
    assert head.startswith("CONNECT models.invalid:443 ")
    assert "Proxy-Authorization: Basic bWU6cHc=" in head
    assert KEY not in head
