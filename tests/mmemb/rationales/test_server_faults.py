"""ServerWriter where something goes wrong: faults, failing draws, redirects, keys, proxies."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import multiprocessing
import pickle
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from mmemb.rationales import ServerError, ServerWriter
from mmemb.rationales.chat_api.client import LONGEST_RETRY_AFTER_S, seconds
from mmemb.rationales.chat_api.reply import MOST_TOKENS, Reply, cut, read_reply
from mmemb.records.rationales import Rationale
from mmemb.storage.signals import Interrupted
from tests.fixtures.chat_server import (
    GOOD,
    KEY,
    SEEDS,
    SIDES,
    Said,
    chat,
    make_writer,
    serving,
    write_prompts,
)

NUMBERS = st.integers(0, 10**25) | st.integers(-99, 99)
DATES = st.builds(
    "Mon, {} {} {} {}:{}:{} {}".format,
    NUMBERS, st.sampled_from(["Jan", "12"]), NUMBERS,
    NUMBERS, NUMBERS, NUMBERS, NUMBERS | st.sampled_from(["GMT", "", "+99"]),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("server"))


def error_of(writer: ServerWriter, num_draws: int = 1) -> str:
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
        (pool,) = make_writer(folder, stub.url).write(SIDES[:1], SEEDS[:1, :1])
    assert pool[0].answer == "France"
    assert stub.times[2] - stub.times[1] >= 0.2
    assert stub.bodies == stub.bodies[:1] * 4
    assert len(caplog.records) == 1, "one warning, however many faults"


@pytest.mark.parametrize(
    ("said", "num_tries", "error"),
    [
        (Said(b"out of memory", 500), 4, r"answered 500: 'out of memory' \(4 tries\)\. Look into"),
        (
            Said(b"", drop=True),
            4,
            r"did not answer: 'Server disconnected .* \(4 tries\)\. Start it",
        ),
        (
            Said(b"{}", short=True),
            4,
            r"did not answer: 'peer closed .* \(received 2 bytes, expected",
        ),
        (Said(b"late", delay_s=0.5), 4, r"answer: 'no whole reply within 0\.1 s' \(4 tries\)"),
        (Said(b"", 400), 1, r"answered 400: nothing\. Check `url`"),
        (Said(b"no\n such \x1b[31mmodel", 404), 1, r"answered 404: 'no such \[31mmodel'\. Check"),
        (Said(b"who", 401), 1, r"answered 401: 'who'\. Put a key .* into \$MMEMB_API_KEY"),
        (Said(b"", 429, {"Retry-After": "86400"}), 1, "asks to wait 86400 s"),
        (Said(b"", 429, {"Retry-After": "9" * 400}), 1, "asks to wait inf s"),
        (Said(b"<html>" * 99), 2, rf"no JSON \(.*\)\): '{'<html>' * 33}<h' \(2 tries\)"),
        (Said(b'{"error": "overloaded"}'), 2, r"missing required field `choices`\): '{\"error"),
        (Said(b'{"id": ' + b"[" * 100_000), 2, "nested too deeply"),
        (Said(b'{"choices": []}'), 2, r"length >= 1 - at `\$.choices`"),
        (Said(b'{"choices": [{}]}'), 2, "missing required field `message`"),
        (chat(None), 2, "it holds no text"),
        (chat(None, tool_calls=[{"id": "1", "function": {"name": "rm"}}]), 2, "it holds no text"),
        (chat([{"type": "text"}]), 2, r"Expected `str | null`, got `array` - at `\$.*content`"),
        (chat(7), 2, r"Expected `str | null`, got `int`"),
        (chat("it is \ud83d"), 2, "half of a surrogate pair"),
        (chat(GOOD, reasoning=[1]), 2, r"got `array` - at `\$.*message.reasoning`"),
        (Said(gzip.compress(b"{}"), headers={"Content-Encoding": "gzip"}), 2, "it is packed"),
        (Said(b" " * (2**24 + 1)), 2, "read: it has more than 16 MiB"),
        (Said(b"no" * 2**20, 400), 1, "answered 400: 'nono"),
        (Said(b"up", 101), 4, "did not answer: 'Received server _SWITCH_UPGRADE"),
    ],
)
def test_a_draw_that_fails_for_good_fails_the_call(
    folder: Path, said: Said, num_tries: int, error: str
) -> None:
    with serving(lambda number, body: said) as stub:
        message = error_of(make_writer(folder, stub.url, timeout_s=0.1 if said.delay_s else 30.0))
    assert message.startswith(f"The chat server {stub.url} ")
    assert re.search(error, message), message
    assert len(stub.bodies) == num_tries


def test_a_server_that_is_not_there_is_named(folder: Path) -> None:
    with serving(lambda number, body: chat(GOOD)) as stub:
        pass
    message = error_of(make_writer(folder, stub.url, retries=1))
    assert f"{stub.url} did not answer: 'Connection refused' (2 tries). Start it" in message
    message = error_of(make_writer(folder, f"http://{'a' * 70}.invalid/v1", retries=0))
    assert "did not answer: 'Name or service not known'" in message, "such a name asks no resolver"


def test_a_server_that_says_nothing_to_tls_is_given_up(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/v1"
        message = error_of(make_writer(folder, url, retries=1, timeout_s=0.3))
    assert "did not answer: 'no connection within 0.1 s' (2 tries)" in message
    with serving(lambda number, body: chat(GOOD)) as stub:
        url = stub.url.replace("http:", "https:")
        assert "did not answer: '[SSL" in error_of(make_writer(folder, url, retries=0))


OK = b"HTTP/1.1 200 OK\r\n"
ENDLESS: dict[str, Callable[[], Iterable[bytes]]] = {
    "a body, byte by byte": lambda: chain([OK + b"Content-Length: 9999\r\n\r\n"], repeat(b" ")),
    "chunks": lambda: chain([OK + b"Transfer-Encoding: chunked\r\n\r\n"], repeat(b"2\r\n  \r\n")),
    "a header, letter by letter": lambda: chain([OK + b"X: "], repeat(b"x")),
    "headers": lambda: chain([OK], repeat(b"X: y\r\n")),
    "a status line": lambda: chain([b"HTTP/1.1 200 "], repeat(b"O")),
    "100 Continue": lambda: repeat(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "silence": lambda: repeat(b""),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_reply_that_never_ends_is_given_up_and_the_others_go_on(folder: Path, what: str) -> None:
    """Every byte comes long before any timeout of a single read."""

    endless = iter([ENDLESS[what]()])  # of the first try alone, however long others take

    def answer(number: int, body: dict[str, Any]) -> Said:
        if body["seed"] == 2 and (drip := next(endless, None)) is not None:
            return Said(b"", drip=drip, delay_s=0.01)
        return chat(f"why => {body['seed']}")

    with serving(answer) as stub:
        writer = make_writer(folder, stub.url, timeout_s=0.2, concurrency=2)
        (pool,) = writer.write(SIDES[:1], torch.arange(1, 9)[None])
        assert what == "silence" or stub.hung_up.acquire(timeout=20)
    assert [draw.answer for draw in pool] == [str(seed) for seed in range(1, 9)]
    seeds = [body["seed"] for body in stub.bodies]
    assert seeds.count(2) >= 2
    assert seeds.index(8) > len(seeds) - 3, "the others did not wait"


FLOODS = {
    "a header": (OK + b"X: ", b"x" * 4096),
    "headers": (OK, b"X: y\r\n" * 1024),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1000\r\n%4096d\r\n" % 0),
    "a size of a chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"1" * 4096),
    "a body without an end": (OK + b"\r\n", b" " * 4096),
}


@pytest.mark.parametrize("what", FLOODS)
def test_a_reply_that_floods_is_given_up_after_some_bytes(folder: Path, what: str) -> None:
    head, piece = FLOODS[what]
    said = Said(b"", drip=chain([head], repeat(piece)))
    with serving(lambda number, body: said) as stub:
        message = error_of(make_writer(folder, stub.url, retries=0))
        assert stub.hung_up.acquire(timeout=20)
    assert "did not answer" in message or "more than 16 MiB" in message, message
    assert "no whole reply" not in message
    assert stub.sent < 32 * 2**20, "what the sockets hold included"


def test_a_flood_of_interim_replies_ends_with_the_time(folder: Path) -> None:
    flood = repeat(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 1024)
    with serving(lambda number, body: Said(b"", drip=flood)) as stub:
        message = error_of(make_writer(folder, stub.url, retries=1, timeout_s=0.2))
        assert stub.hung_up.acquire(timeout=20)
    assert "'no whole reply within 0.2 s' (2 tries)" in message


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_waiting(folder: Path, signum: signal.Signals) -> None:
    main = threading.get_ident()

    def answer(number: int, body: dict[str, Any]) -> Said:
        if number == 3:
            signal.pthread_kill(main, signum)
        return Said(b"", drip=repeat(b"HTTP/1.1 100 Continue\r\n\r\n"), delay_s=0.01)

    def interrupt(*_: object) -> None:
        raise Interrupted(signum)  # as a command does, but for the clock that ends a process

    before = signal.signal(signum, interrupt)
    with serving(answer) as stub:
        try:
            with pytest.raises(Interrupted):
                make_writer(folder, stub.url).write(SIDES[:1], torch.arange(40)[None])
        finally:
            signal.signal(signum, before)
        assert all(stub.hung_up.acquire(timeout=20) for _ in range(4))
    assert len(stub.bodies) == 4
    assert "chat requests" not in {thread.name for thread in threading.enumerate()}


def test_a_caller_may_run_a_loop_be_pickled_or_forked(folder: Path) -> None:
    """As notebooks and the workers of a data loader do."""
    with serving(lambda number, body: chat(GOOD)) as stub:
        writer = make_writer(folder, stub.url)
        expected = writer.write(SIDES[:1], SEEDS[:1])

        async def write() -> list[list[Rationale]]:
            return pickle.loads(pickle.dumps(writer)).write(SIDES[:1], SEEDS[:1])

        assert asyncio.run(write()) == expected
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.starmap(writer.write, [(SIDES[:1], SEEDS[:1])] * 2) == [expected] * 2


def test_plain_http_leaves_openssl_to_the_thread_of_the_caller(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread would take a lock of OpenSSL when it ends, and a process that is forked in
    that moment could never take it: one fork in some fifty hung."""
    users: list[threading.Thread] = []

    class Recorded(ssl.SSLContext):
        def __new__(cls, *arguments: Any) -> Recorded:
            users.append(threading.current_thread())
            return super().__new__(cls, *arguments)

    with serving(lambda number, body: chat(GOOD)) as stub:
        monkeypatch.setattr(ssl, "SSLContext", Recorded)
        make_writer(folder, stub.url).write(SIDES[:1], SEEDS[:1])

    assert {*users} == {threading.current_thread()}, "and it has used it"


@given(st.text(max_size=40) | DATES)
def test_no_header_makes_a_pause_that_is_none(said: str) -> None:
    assert seconds(said) >= 0, "and no other error"


def test_a_date_counts_in_its_own_time_zone() -> None:
    assert seconds("9999999999") > LONGEST_RETRY_AFTER_S, "no date, and not at once"
    later = datetime.now(timezone(timedelta(hours=2))) + timedelta(seconds=100)
    assert 90 < seconds(later.strftime("%a, %d %b %Y %H:%M:%S %z")) <= 100


def test_one_failure_ends_what_is_under_way(folder: Path) -> None:
    """Requests that wait for a reply, for another try and for their turn."""

    def answer(number: int, body: dict[str, Any]) -> Said:
        if body["seed"] == 3:
            return Said(b"no", 400, delay_s=0.2)
        return Said(b"", 503, {"Retry-After": "60"}) if body["seed"] == 2 else chat("", delay_s=60)

    with serving(answer) as stub:
        started = time.monotonic()
        assert "answered 400" in error_of(make_writer(folder, stub.url), 40)
        assert time.monotonic() - started < 20, "nobody waited for a minute"
        assert len(stub.bodies) <= 4


def test_redirects_are_not_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMEMB_API_KEY", KEY)
    with serving(lambda number, body: chat(GOOD)) as other:
        moved = Said(b"", 307, {"Location": other.url})
        with serving(lambda number, body: moved) as stub:
            assert "Redirects are not followed" in error_of(make_writer(folder, stub.url))
    assert not other.bodies


@pytest.mark.parametrize(
    ("content", "counted", "num_tokens"),
    [
        pytest.param("word " * 2_000_000, 5, MOST_TOKENS, marks=pytest.mark.slow, id="many words"),
        pytest.param(f"why => {'x' * 3_200_000}", 5, 100_000, id="a long word"),
        pytest.param("why => France", 10**30, MOST_TOKENS, id="a huge count"),
        pytest.param("why => France", 500, 500, id="hidden thoughts"),
        pytest.param("why => France", True, 3, id="no count"),
    ],
)
def test_a_count_of_tokens_is_not_believed(
    folder: Path, content: str, counted: Any, num_tokens: int
) -> None:
    said = chat(content, usage={"completion_tokens": counted})
    with serving(lambda number, body: said) as stub:
        ((draw,),) = make_writer(folder, stub.url, max_new_tokens=10).write(
            SIDES[:1], SEEDS[:1, 1:2]
        )
    assert draw.num_tokens == num_tokens
    assert len(draw.text) < 400, "what was not asked for is not written down"
    assert bool(draw.answer) == (counted != 5), "nor is it an answer"


def test_a_runaway_thought_is_cut_as_well() -> None:
    reply = cut(Reply("France", "why " * 1000, 5, True), 10)
    assert reply == Reply("France", ("why " * 80), 5, False)
    assert cut(Reply("\n" * 1000 + "France", "why", 5, True), 10).finished


@pytest.mark.parametrize("said", ["stop", "eos_token", "stop_sequence", "length", "content_filter"])
def test_servers_have_several_words_for_an_end(said: str) -> None:
    reply = read_reply(chat("France", finish=said).body)
    assert reply.finished == (said not in ("length", "content_filter"))


# the key


def test_a_server_may_be_sent_no_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMEMB_API_KEY", KEY)
    monkeypatch.setenv("None", KEY)
    with serving(lambda number, body: Said(b"who", 401)) as stub:
        writer = make_writer(folder, stub.url, api_key_env=None)
        message = error_of(writer)
    assert KEY not in str(stub.heads)
    assert message.endswith(
        "Put a key that it accepts into a variable, and name that as "
        "`api_key_env` (of a saved folder: servers={HOST: VARIABLE}, --server HOST=VARIABLE)."
    )


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
        writer = make_writer(folder, stub.url, api_key_env="OTHER_KEY")
        monkeypatch.setenv("OTHER_KEY", f"{KEY}\n")  # read when it is needed, not before
        message = error_of(writer)
    assert all(head.count(KEY) == 1 for head in stub.heads)
    assert all(f"Authorization: Bearer {KEY}\n" in head for head in stub.heads)
    shown = [message, caplog.text, json.dumps(writer.spec()), repr(vars(writer))]
    shown += map(json.dumps, stub.bodies)
    assert not [text for text in shown if KEY in text or KEY[:8] in text]
    assert "slow down, ***" in caplog.text
    assert message.endswith("$OTHER_KEY.")


def test_without_a_key_nothing_is_sent_in_its_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither a password of `.netrc` nor what the server wants to be sent again."""
    monkeypatch.delenv("MMEMB_API_KEY", raising=False)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password pw")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    cookie = {"Set-Cookie": "who=me; Path=/", "WWW-Authenticate": "Basic"}
    said = [Said(b"", 503, cookie), chat(GOOD), chat(GOOD)]
    with serving(lambda number, body: said[number]) as stub:
        make_writer(folder, stub.url, concurrency=1).write(SIDES[:1], SEEDS[:1, :2])
    names = [set(re.findall(r"^([\w-]+):", head, re.MULTILINE)) for head in stub.heads]
    allowed = {"host", "user-agent", "content-type", "content-length", "accept-encoding"}
    assert [{name.lower() for name in found} for found in names] == [allowed] * 3


def test_a_broken_key_is_not_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMEMB_API_KEY", f"{KEY}\r\nHost: other")
    message = error_of(make_writer(folder, "http://127.0.0.1:1/v1"))
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
        writer = make_writer(folder, "https://models.invalid/v1", retries=0)
        assert "did not answer: 'its proxy said 502 Bad Gateway'" in error_of(writer)
        writer = make_writer(folder, "https://127.0.0.1:1/v1", retries=0)
        assert "refused" in error_of(writer), "this machine needs none"
        for wrong in ("socks5://me:pw@host:1", "http://me:pw@:x", "me:pw@host:99999"):
            monkeypatch.setenv("https_proxy", wrong)
            message = error_of(make_writer(folder, "https://models.invalid/v1", retries=0))
            assert "HTTPS_PROXY names no proxy" in message
            assert "pw" not in message
    (head,) = stub.heads
    assert head.startswith("CONNECT models.invalid:443 ")
    assert "Proxy-Authorization: Basic bWU6cHc=" in head
    assert KEY not in head
