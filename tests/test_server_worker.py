"""ServerWorker against a chat server on loopback that answers late, wrongly or not at all."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from mmemb.rationales import NO_DRAW, FewShotPrompt, ServerError, ServerWorker, load_worker
from mmemb.rationales.chat_reply import Reply
from mmemb.rationales.server import tagged
from mmemb.records import GREEDY, SHORT, Media, Rationale, Side
from tests.chat_stub import Said, chat, serving

KEY = "sk-planted/0123456789"
SIDES = [Side(text="Paris"), Side(media=(Media("image", "0" * 64),)), Side(text="the Nile")]
SEEDS = torch.tensor([[GREEDY, 21, 22], [GREEDY, 23, 24], [2**62 + 25, 26, NO_DRAW]])
GOOD = "It is France. => France"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("server")
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


def error_of(writer: ServerWorker, num_draws: int = 1) -> str:
    with pytest.raises(ServerError) as caught:
        writer.write(SIDES[:1], torch.arange(num_draws)[None])
    return str(caught.value)


# what is asked


def test_requests_hold_the_prompt_and_nothing_that_servers_disagree_about(folder: Path) -> None:
    with serving(lambda number, body: chat(GOOD, usage={"completion_tokens": 9})) as stub:
        writer = worker(folder, stub.url, concurrency=1, revision="r1", name="vlm")
        written = writer.write(SIDES, SEEDS)
    assert [[r.seed for r in pool] for pool in written] == [SEEDS[0].tolist(), [], [2**62 + 25, 26]]
    assert written[0][0] == Rationale(
        text="<think>It is France.</think><answer>France</answer>",
        worker="vlm",
        model="tiny",
        revision="r1",
        prompt=writer.prompt.identity,
        decoding="greedy n=96",
        seed=GREEDY,
        num_tokens=9,
    )
    assert written[2][1].decoding == "t=0.8 p=0.95 n=96"
    shared = {"model", "messages", "max_tokens", "stream"}
    assert set(stub.bodies[0]) == shared | {"temperature"}
    assert set(stub.bodies[1]) == shared | {"temperature", "top_p", "seed"}
    assert [body["temperature"] for body in stub.bodies] == [0, 0.8, 0.8, 0.8, 0.8]
    seeds = [body["seed"] for body in stub.bodies if "seed" in body]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert stub.bodies[0]["messages"] == [
        {"role": "system", "content": "Name it."},
        {"role": "user", "content": "Rome"},
        {"role": "assistant", "content": "It is Italy. => Italy"},
        {"role": "user", "content": "Paris"},
    ]
    assert all(head.startswith("POST /v1/chat/completions ") for head in stub.heads)


def test_equal_calls_send_equal_requests_and_keep_their_order(folder: Path) -> None:
    four = threading.Barrier(4, timeout=20)

    def answer(number: int, body: dict[str, Any]) -> Said:
        if number < 4:
            four.wait()  # as many as allowed are here at once
        echo = f"{body['messages'][-1]['content']} => {body.get('seed')}"
        return chat(echo, delay_s=0.1 if number % 4 == 0 else 0.0)  # the first arrives last

    sides, seeds = [Side(text=f"s{n}") for n in range(5)], torch.arange(15).reshape(5, 3)
    with serving(answer) as stub:
        writer = worker(folder, stub.url)
        first = writer.write(sides, seeds)
        assert stub.most_active == 4, "and never more"
        assert first == load_worker(writer.settings()).write(sides, seeds)
    plain = [[(r.thinking, r.answer) for r in pool] for pool in first]
    assert plain == [[(f"s{n}", str(3 * n + k)) for k in range(3)] for n in range(5)]
    asked = sorted(map(json.dumps, stub.bodies))
    assert asked[::2] == asked[1::2]


def test_pictures_travel_as_they_are(folder: Path) -> None:
    from PIL import Image

    pixels = torch.randint(0, 256, (3, 5, 8), dtype=torch.uint8)
    frames = tuple(Media("frame", str(n), pixels.roll(n, 2)) for n in range(2))
    sides = [Side(text="what", media=(Media("image", "a", pixels),)), Side(media=frames)]
    reads = ["text", "image", "video"]
    with serving(lambda number, body: chat(GOOD)) as stub:
        worker(folder, stub.url, reads=reads, concurrency=1).write(sides, torch.ones(2, 1).long())
        small = worker(folder, stub.url, reads=["text", "image"], max_image_side=4)
        assert small.write(sides, torch.ones(2, 1).long())[1] == [], "it reads no video"
    whole, video, shrunk = (body["messages"][-1]["content"] for body in stub.bodies)
    assert whole[1:] == [{"type": "text", "text": "what"}]
    assert [part["type"] for part in video] == ["image_url"] * 2
    seen = []
    for part in (whole[0], *video, shrunk[0]):
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        seen.append(Image.open(io.BytesIO(base64.b64decode(data))))
    for image, expected in zip(seen, [pixels, *(frame.pixels for frame in frames)], strict=False):
        raw = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        assert torch.equal(raw.reshape(5, 8, 3).permute(2, 0, 1), expected)
    assert max(seen[3].size) == 4


def test_pictures_that_were_not_decoded_are_one_clear_error(folder: Path) -> None:
    writer = worker(folder, "http://127.0.0.1:1/v1", reads=["image"])
    with pytest.raises(ValueError, match=r"Set `decode: true` of SideDataModule"):
        writer.write(SIDES, SEEDS)
    nothing = torch.full((3, 1), NO_DRAW)
    assert writer.write(SIDES, nothing) == [[], [], []], "nobody asked for a draw"


# what is made of a reply


@pytest.mark.parametrize(
    ("prompt", "reply", "text"),
    [
        ("arrow", Reply("a. => B", "", 1, False), "<think>a.</think><answer>B"),
        ("arrow", Reply("a.", "", 1, True), "<think>a."),
        ("arrow", Reply("B", "why", 1, True), "<think>why</think><answer>B</answer>"),
        ("arrow", Reply("a. => B", "why", 1, True), "<think>why</think><answer>B</answer>"),
        ("arrow", Reply("<think>why</think>\nB", "", 1, True),
         "<think>why</think><answer>B</answer>"),
        ("arrow", Reply("", "why is", 1, False), "<think>why is</think><answer>"),
        ("tags", Reply("<think>a</think><answer>B</answer>", "", 1, True),
         "<think>a</think><answer>B</answer>"),
        ("tags", Reply("a</think><answer>B</answer> so", "", 1, False),
         "<think>a</think><answer>B</answer>"),
        ("tags", Reply("a</think>\n<answer>B</answer>", "", 1, True),
         "<think>a</think><answer>B</answer>"),
        ("tags", Reply("<answer>B</answer>", "a </think>", 1, True),
         "<think>a</think><answer>B</answer>"),
        ("short", Reply("B", "why", 1, True), "<answer>B</answer>"),
        ("short", Reply("<think>why</think>B", "", 1, True), "<answer>B</answer>"),
        ("short", Reply("B", "", 1, False), "<answer>B"),
    ],
)  # fmt: skip
def test_replies_are_put_into_tags(folder: Path, prompt: str, reply: Reply, text: str) -> None:
    assert tagged(FewShotPrompt.load(folder / f"{prompt}.json"), reply) == text


def test_reasoning_is_the_thought_and_what_was_cut_has_no_answer(folder: Path) -> None:
    said = [
        chat("France", reasoning_content="Paris is there."),
        chat("France", reasoning="Paris is there.", reasoning_content=None),
        chat("It is France. => Fra", "length", {"completion_tokens": 8}),
        chat(None, "length", reasoning_content="Paris"),
    ]
    with serving(lambda number, body: said[number]) as stub:
        writer = worker(folder, stub.url, concurrency=1)
        (pool,) = writer.write(SIDES[:1], torch.arange(4)[None])
    expected = "<think>Paris is there.</think><answer>France</answer>"
    assert [r.text for r in pool[:2]] == [expected] * 2
    assert [r.answer for r in pool[2:]] == ["", ""]
    assert [r.num_tokens for r in pool] == [4, 4, 8, 1], "words where the server does not count"


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


# settings


def test_identity_covers_what_is_asked_and_not_where(folder: Path) -> None:
    one = worker(folder, "http://127.0.0.1:1/v1")
    patient = {"concurrency": 1, "timeout_s": 9.0, "retries": 0, "backoff_s": 2.0}
    same = worker(folder, "https://elsewhere.org/v1/", api_key_env="K", **patient)
    assert one.identity() == same.identity()
    changed: list[dict[str, Any]] = [
        {"prompt": "tags.json"}, {"revision": "2"}, {"name": "other"}, {"temperature": 0.7},
        {"top_p": 0.9}, {"max_new_tokens": 95}, {"reads": ["text", "image"]}, {"max_image_side": 9},
    ]  # fmt: skip
    found = {worker(folder, "http://127.0.0.1:1/v1", **change).identity() for change in changed}
    assert len(found | {one.identity()}) == len(changed) + 1
    assert load_worker(same.settings()).settings() == same.settings()
    assert one.concepts == {"country:it"}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"url": "ftp://host/v1"}, "http or https"),
        ({"url": f"https://user:{KEY}@host/v1"}, "no user, password"),
        ({"url": f"https://host/v1?key={KEY}"}, "no user, password"),
        ({"url": "http://host:port/v1"}, "maybe a port"),
        ({"url": "127.0.0.1:8000"}, "such as http://127"),
        ({"api_key_env": KEY}, "no name of an environment variable"),
        ({"concurrency": 0}, "concurrency 0"),
        ({"retries": -1}, "retries -1"),
        ({"temperature": 0.0}, "temperature 0"),
        ({"reads": ["text", "sound"]}, "some of text, image, video"),
        ({"max_image_side": 0}, "expected pixels"),
    ],
)
def test_wrong_settings_are_named(folder: Path, change: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error) as caught:
        worker(folder, **{"url": "http://host/v1"} | change)
    assert KEY not in str(caught.value)


# a real server


@pytest.mark.slow
def test_a_real_server_writes_what_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    missing = [
        name for name in ("openai", "fastapi", "uvicorn") if not importlib.util.find_spec(name)
    ]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: pip install -e '.[serving]'")
    from tests.tiny_models import write_chat_model

    model = write_chat_model(tmp_path / "model")
    # `transformers serve` samples only where the model's own settings say so.
    (model / "generation_config.json").write_text('{"do_sample": true, "eos_token_id": 1}')
    with serving(lambda number, body: chat(GOOD)) as stub:
        port = stub.url.split(":")[2].removesuffix("/v1")  # free a moment ago
    program = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", program, "serve", str(model), "--port", port]
    command += ["--host", "127.0.0.1", "--device", "cpu"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server)
            writer = ServerWorker(
                f"http://127.0.0.1:{port}/v1", str(model), str(folder / "short.json"),
                max_new_tokens=12, concurrency=1, timeout_s=60.0,
            )  # fmt: skip
            sides = [Side(text="Paris"), Side(text="the Nile")]
            seeds = torch.tensor([[GREEDY, 5, 6], [GREEDY, 5, NO_DRAW]])
            written = writer.write(sides, seeds)
            assert written == writer.write(sides, seeds)
        finally:
            server.terminate()
            server.wait(30)
    assert [[r.seed for r in pool] for pool in written] == [[GREEDY, 5, 6], [GREEDY, 5]]
    assert len({r.text for r in written[0]}) == 3
    assert all(r.text.startswith("<answer>") and 0 < r.num_tokens <= 12 for r in written[0])


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server has ended: see its log"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server did not start in two minutes")
