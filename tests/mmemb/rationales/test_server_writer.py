"""ServerWriter against a chat server on loopback that answers late, wrongly or not at all."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from mmemb.llm import FewShotPrompt
from mmemb.rationales import NO_DRAW, ServerWriter, load_writer
from mmemb.rationales.chat_api.reply import Reply
from mmemb.rationales.writers.server import tagged
from mmemb.records.inputs import Media, Side
from mmemb.records.rationales import GREEDY, Rationale
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("server"))


# what is asked


def test_requests_hold_the_prompt_and_nothing_that_servers_disagree_about(folder: Path) -> None:
    with serving(lambda number, body: chat(GOOD, usage={"completion_tokens": 9})) as stub:
        writer = make_writer(folder, stub.url, concurrency=1, revision="r1", name="vlm")
        written = writer.write(SIDES, SEEDS)
    assert [[r.seed for r in pool] for pool in written] == [SEEDS[0].tolist(), [], [2**62 + 25, 26]]
    assert written[0][0] == Rationale(
        text="<think>It is France.</think><answer>France</answer>",
        writer="vlm",
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
        writer = make_writer(folder, stub.url)
        first = writer.write(sides, seeds)
        assert stub.most_active == 4, "and never more"
        assert first == load_writer(writer.spec()).write(sides, seeds)
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
        make_writer(folder, stub.url, reads=reads, concurrency=1).write(
            sides, torch.ones(2, 1).long()
        )
        small = make_writer(folder, stub.url, reads=["text", "image"], max_image_side=4)
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
    writer = make_writer(folder, "http://127.0.0.1:1/v1", reads=["image"])
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
        writer = make_writer(folder, stub.url, concurrency=1)
        (pool,) = writer.write(SIDES[:1], torch.arange(4)[None])
    expected = "<think>Paris is there.</think><answer>France</answer>"
    assert [r.text for r in pool[:2]] == [expected] * 2
    assert [r.answer for r in pool[2:]] == ["", ""]
    assert [r.num_tokens for r in pool] == [4, 4, 8, 1], "words where the server does not count"


# settings


def test_identity_covers_what_is_asked_and_not_where(folder: Path) -> None:
    one = make_writer(folder, "http://127.0.0.1:1/v1")
    patient = {"concurrency": 1, "timeout_s": 9.0, "retries": 0, "backoff_s": 2.0}
    same = make_writer(folder, "https://elsewhere.org/v1/", api_key_env="K", **patient)
    assert one.identity() == same.identity()
    changed: list[dict[str, Any]] = [
        {"prompt": "tags.json"}, {"revision": "2"}, {"name": "other"}, {"temperature": 0.7},
        {"top_p": 0.9}, {"max_new_tokens": 95}, {"reads": ["text", "image"]}, {"max_image_side": 9},
    ]  # fmt: skip
    found = {
        make_writer(folder, "http://127.0.0.1:1/v1", **change).identity() for change in changed
    }
    assert len(found | {one.identity()}) == len(changed) + 1
    assert load_writer(same.spec()).spec() == same.spec()
    assert one.concepts == {"country:it"}


def test_fingerprints_cover_what_is_asked_and_not_where() -> None:
    """So shards that were paid for stay, whatever server goes on with the others."""
    from experiments.cli.experiment_cli import (
        parse,
        run_fingerprint,
        settings_of,
        without_machine_keys,
    )
    from experiments.cli.messages import quieten
    from tests.fixtures.tiny_experiment import CONFIGS, POCKET, settings_kept

    quieten()
    files = (POCKET / "rationales.yaml", CONFIGS / "writer/server.yaml")
    with settings_kept():
        config = parse(["predict", *(word for file in files for word in ("--config", str(file)))])
    server = config.model.init_args.writers["server"].init_args
    first = run_fingerprint(config, "predict")
    moved = {"url": "https://elsewhere.org/v1", "concurrency": 1, "timeout_s": 9.0, "retries": 0}
    for key, value in (moved | {"backoff_s": 2.0, "api_key_env": "K"}).items():
        server[key] = value
    assert run_fingerprint(config, "predict") == first
    whole = settings_of(config, "predict", machine=True)["model"]["init_args"]["writers"]
    assert whole["server"]["init_args"]["url"] == moved["url"], "as a run records it"
    inner = {"writer": {"class_path": "mmemb.rationales.ServerWriter", "init_args": moved}}
    outer = {"class_path": "mmemb.rationales.LabelBridgeWriter", "init_args": inner}
    assert "elsewhere" not in str(without_machine_keys([outer]))
    server.max_new_tokens += 1
    assert run_fingerprint(config, "predict") != first


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
        make_writer(folder, **{"url": "http://host/v1"} | change)
    assert KEY not in str(caught.value)


# a real server


@pytest.mark.slow
def test_a_real_server_writes_what_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    missing = [
        name for name in ("openai", "fastapi", "uvicorn") if not importlib.util.find_spec(name)
    ]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: pip install -e '.[serving]'")
    from tests.fixtures.tiny_models import write_chat_model

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
            writer = ServerWriter(
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
