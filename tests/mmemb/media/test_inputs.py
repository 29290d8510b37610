"""Pictures, clips and sides of all that a caller may hold; what is none of them says what to do."""

from __future__ import annotations

import hashlib
import io
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.decode import decode_image
from datamodules.prepare.folder.media import side_members
from mmemb.media import clip, inputs, picture, pictures, side, sides
from mmemb.records.inputs import Media, Side
from tests.fixtures.tiny_clips import grey, write_video

PIXELS_HW3 = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
PIXELS = torch.from_numpy(PIXELS_HW3).permute(2, 0, 1)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PNG = encoded(Image.fromarray(PIXELS_HW3))
URL = "data:image/png;base64," + b64encode(PNG).decode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    return path


def test_one_picture_is_the_same_from_every_origin(file: Path) -> None:
    with_file = [picture(thing) for thing in (file, PNG, bytearray(PNG), URL)]
    assert {media.digest for media in with_file} == {hashlib.sha256(PNG).hexdigest()}

    bare = [
        Image.fromarray(PIXELS_HW3), Image.open(file), PIXELS_HW3, PIXELS_HW3 / 255,
        PIXELS_HW3.transpose(2, 0, 1), PIXELS, PIXELS / 255, PIXELS.permute(1, 2, 0),
        torch.nn.Parameter(PIXELS.half() / 255),
    ]  # fmt: skip
    without_file = [picture(thing) for thing in bare]
    assert len({media.digest for media in without_file}) == 1

    for media in with_file + without_file:
        assert media.kind == "image"
        assert torch.equal(media.pixels, PIXELS)
    assert picture(with_file[0]) is with_file[0]
    assert picture(PIXELS_HW3[:, :5]).digest != picture(PIXELS_HW3[:, 1:6]).digest


def test_grey_and_alpha_are_laid_on_white_as_in_files() -> None:
    grey_HW, rgba = (
        PIXELS_HW3[..., 0],
        np.dstack([PIXELS_HW3, 40 * np.arange(7)[None].repeat(5, 0)]),
    )
    for values, mode in (
        (grey_HW, "L"),
        (grey_HW[..., None], "L"),
        (rgba.astype(np.uint8), "RGBA"),
    ):
        image = Image.fromarray(values.squeeze(), mode)
        expected = pictures.read_pixels(encoded(image), ["PNG"], "x")
        assert torch.equal(picture(values).pixels, expected)
        assert torch.equal(picture(image).pixels, expected)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "PA", "CMYK", "HSV", "YCbCr", "I;16"])
def test_an_image_of_pillow_is_read_as_its_file(mode: str) -> None:
    image = Image.fromarray(PIXELS_HW3).convert("L" if mode == "I;16" else mode.replace("PA", "P"))
    image = image.convert(mode)
    kind = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    if mode not in ("HSV", "YCbCr", "PA"):  # of which Pillow writes no file
        expected = pictures.read_pixels(encoded(image, kind), [kind], "x")
        assert torch.equal(picture(image).pixels, expected)
    assert picture(image).pixels.shape == PIXELS.shape


def test_an_image_of_pillow_stands_upright_and_may_be_closed(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS_HW3)
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "turned.png", exif=exif)

    with Image.open(tmp_path / "turned.png") as opened:
        opened.load()
    assert torch.equal(picture(opened).pixels, torch.rot90(PIXELS, -1, (1, 2)))
    assert torch.equal(picture(opened).pixels, picture(tmp_path / "turned.png").pixels)

    with Image.open(tmp_path / "turned.png") as closed:
        pass
    with pytest.raises(
        ValueError, match="The picture cannot be read; its file is closed: call image.load"
    ):
        picture(closed)


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\) is no picture: expected \(H, W\)"),
        (np.zeros((3, 4, 3), np.uint8), r"may be \(3, H, W\) or \(H, W, C\)"),
        (np.zeros((0, 4), np.uint8), "expected 1 to 64000000 pixels"),
        (np.zeros((9000, 9000), bool), "expected 1 to 64000000 pixels"),
        (np.zeros((4, 4), np.int64), "expected uint8, or floats from 0 to 1"),
        (np.full((4, 4), 200.0), "goes from 200 to 200: expected floats from 0"),
        (np.full((4, 4), np.nan), "goes from nan to nan"),
        (torch.full((4, 4), -0.5), "goes from -0.5 to -0.5"),
        (
            torch.zeros(4, 4).to_sparse(),
            "The tensor is no plain array of numbers: can't convert Sp",
        ),
        (torch.empty(4, 4, device="meta"), "The tensor is no plain array of numbers"),
        (np.ma.array(np.zeros((4, 4)), mask=True), "The array is masked: fill what is masked"),
        (Image.new("I", (4, 4)), "The picture cannot be read; grey of 32 bits"),
        (b"", "The picture cannot be decoded: expected a whole WEBP/PNG"),
        pytest.param(PNG[:60], "The picture cannot be decoded", id="cut"),
        ("a.png", "'a.png' is a text: wrap it in Path"),
        ("https://example.org/a.png", "is a URL, and nothing is fetched here"),
        ("data:image/png,xx", "begins with 'data:image/png': expected data:image/KIND;base64"),
        ("data:image/png;base64,????", "The data URL is cut or damaged"),
        (7, "7 is an int: expected a text, a Path"),
        (None, "None is a NoneType: expected"),
    ],
)
def test_what_is_no_picture_says_why(thing: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        picture(thing)


def test_the_bound_on_pixels_holds_for_every_origin(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 34)
    monkeypatch.setattr(inputs, "MAX_PIXELS", 34)
    for thing in (file, PNG, URL, Image.fromarray(PIXELS_HW3), PIXELS_HW3, PIXELS):
        with pytest.raises(ValueError, match="34"):
            picture(thing)
    monkeypatch.setattr(pictures, "MAX_BYTES", 99)
    for thing in (file, PNG, URL):
        with pytest.raises(ValueError, match=rf"has {len(PNG)} bytes: expected a picture"):
            picture(thing)


def test_a_picture_that_moves_is_a_clip(tmp_path: Path) -> None:
    frames = [Image.fromarray(grey(number)) for number in range(9)]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    (tmp_path / "a.webp").write_bytes(data)

    for thing in (data, tmp_path / "a.webp"):
        assert [media.kind for media in side(thing, num_frames=3).media] == ["frame"] * 3
        with pytest.raises(ValueError, match="moves: give it as a clip"):
            picture(thing)

    opened = Image.open(tmp_path / "a.webp")
    with pytest.raises(ValueError, match=r"The picture moves: .* image\.copy\(\)"):
        side(opened)
    opened.seek(4)
    assert torch.equal(picture(opened.copy()).pixels, picture(frames[4]).pixels)


@pytest.mark.parametrize("name", ["c.mp4", "c.mkv", "c.ts", "c.gif", "c.png", "frames"])
def test_a_clip_has_the_frames_that_prepare_folder_takes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "frames":
        path.mkdir()
        for number in range(12):
            suffix = ("bmp", "webp", "png")[number % 3]
            Image.fromarray(grey(number)).save(path / f"f{number}.{suffix}")
    elif path.suffix in (".gif", ".png"):
        images = [Image.fromarray(grey(number)) for number in range(12)]
        durations = [100, *[900] * 11]
        images[0].save(path, save_all=True, append_images=images[1:], duration=durations)
    else:
        write_video(path)

    members = side_members(tmp_path, [name], "q", 5)
    expected = [decode_image(members[member], member) for member in sorted(members)]
    things = [path] if path.is_dir() else [path, path.read_bytes()]
    for thing in things:
        for frames in (clip(thing, 5), side(thing, num_frames=5).media):
            assert {frame.kind for frame in frames} == {"frame"}
            assert all(
                torch.equal(frame.pixels, pixels)
                for frame, pixels in zip(frames, expected, strict=True)
            )
    if path.is_dir():
        kept = hashlib.sha256(members["q0.002.png"]).hexdigest()
        assert clip(path, 5)[2].digest == kept != clip([Image.open(path / "f5.png")])[0].digest


def test_a_clip_of_pictures_and_arrays() -> None:
    frames_THW3 = np.stack([grey(number) for number in range(20)])
    images = [Image.fromarray(frame) for frame in frames_THW3]
    found = [clip(thing, 4) for thing in (images, tuple(images), frames_THW3)]
    found.append(clip(torch.from_numpy(frames_THW3).permute(0, 3, 1, 2), 4))
    assert [int(media.pixels[0, 0, 0]) // 10 - 1 for media in found[0]] == [0, 6, 12, 19]
    assert len({tuple(media.digest for media in frames) for frames in found}) == 1

    # Frames that were chosen once stay as they are.
    assert len(clip(clip(images, 12), 4)) == len(side(clip(images, 12), num_frames=4).media) == 12
    assert side(frames_THW3).digest == Side(media=clip(images)).digest


def test_what_is_no_clip_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    write_video(tmp_path / "cut.mp4", options={"movflags": "faststart"})
    cut = (tmp_path / "cut.mp4").read_bytes()[:-99]
    for thing, words in [
        ([], r"\[\] is no clip: expected a Path"),
        (np.zeros((4, 4, 3), np.uint8), "is no clip"),
        (Image.new("RGB", (4, 4)), "is no clip"),
        ("a.mp4", "'a.mp4' is a text: wrap it in Path"),
        (tmp_path / "empty", "empty is a folder without pictures"),
        (tmp_path / "a.mp4", r"a\.mp4 cannot be decoded"),
        (cut, "^The clip is cut: it has"),
        ([grey(0), grey(0, (4, 4))], "The clip: frame 1 has 4 x 4 pixels, frame 0 48 x 32: expect"),
    ]:
        with pytest.raises(ValueError, match=words):
            clip(thing)
    for wrong in (0, 2.5, "8"):
        with pytest.raises(ValueError, match=f"num_frames is {wrong!r}: expected a whole number"):
            clip([grey(0)], wrong)


def test_sides_of_everything(file: Path) -> None:
    media = picture(file)
    frames = clip([grey(0), grey(9)])
    whole = Side("a", "Find it.", (media,))
    for thing, expected in [
        ("a text", Side("a text", "Do.")),
        ("", Side("", "Do.")),
        (file, Side("", "Do.", (media,))),
        (PNG, Side("", "Do.", (media,))),
        (media, Side("", "Do.", (media,))),
        (frames, Side("", "Do.", frames)),
        (PIXELS, Side("", "Do.", (picture(PIXELS),))),
        (Side("a"), Side("a", "Do.")),
        (whole, whole),
        ({"text": str(file)}, Side(str(file), "Do.")),
        ({"text": "a", "image": file, "instruction": "Find it."}, whole),
        ({"image": [PNG, URL]}, Side("", "Do.", (media, media))),
        ({"video": [grey(0), grey(9)], "image": PNG}, Side("", "Do.", (media, *frames))),
    ]:
        assert same(side(thing, "Do."), expected), thing
    assert side(whole) is whole
    assert [s.text for s in sides(("a", {"text": "b"}), "Do.")] == ["a", "b"]


def same(one: Side, two: Side) -> bool:
    """Digests of media stand for their pixels, which `==` cannot compare."""
    return one.digest == two.digest


def test_a_text_is_never_opened(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    for text in (str(file), "a.png"):
        with pytest.raises(
            ValueError, match=r"names a file that is there.*wrap it in Path\(\.\.\.\)"
        ):
            side(text)
    for text, words in (
        (URL, "names the data URL of a picture"),
        ("https://example.org/a.JPG?size=9", "names the URL of a file, and a str is always a text"),
    ):
        with pytest.raises(ValueError, match=words):
            side(text)
    for text in (
        "b.png",
        "what is a.png?",
        "https://example.org/page",
        "x" * 9999 + ".png",
        "\0.png",
    ):
        assert side(text) == Side(text)


def test_faults_of_a_list_name_their_place(tmp_path: Path) -> None:
    for things, words in [
        (["a", {"txt": "b"}], r"Input 1: 'txt' is an unknown key: .*Did you mean text\?"),
        (["a", {"audio": b""}], "Input 1: 'audio' is an unknown key: expected text, image, video"),
        ([{"text": 7}], "Input 0: text is 7: expected a text"),
        ([{"image": None}], "Input 0: None is a NoneType"),
        ([{"image": "a.png"}], "Input 0: 'a.png' is a text: wrap it in Path"),
        ([{"video": "https://example.org/a.mp4"}], "Input 0: .* is a URL, and nothing is fetched"),
        ([{}], "Input 0: {} holds nothing"),
        ([{"text": "", "image": []}], "Input 0: .* holds nothing"),
        ([[PIXELS_HW3]], "Input 0: .* is a list: expected one input"),
        ("a text", "'a text' is one input: expected a list"),
        (PIXELS_HW3, "is one input"),
        (Side("a"), "is one input"),
    ]:
        with pytest.raises(ValueError, match=words):
            sides(things)
    for path, words in ((tmp_path / "no.png", "is missing"), (Path("/dev/null"), "is no file")):
        with pytest.raises(FileNotFoundError, match=f"Input 1: {path} {words}: expected a picture"):
            sides(["a", path])
    with pytest.raises(FileNotFoundError, match=r"Input 1: x+\.png is missing"):
        sides(["a", Path("x" * 300 + ".png")])
    with pytest.raises(ValueError, match="Input 0: instruction is None: expected a text"):
        sides(["a"], instruction=None)


def test_a_library_that_is_missing_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = write_video(tmp_path / "c.mp4")
    for module, package, thing in (
        ("av", "Reading clips needs av", video),
        ("resvg_py", "Drawing SVG needs resvg-py", b"<svg/>"),
        ("PIL", "Reading pictures needs Pillow", PNG),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(
                ModuleNotFoundError, match=f"^{package}: pip install 'mmemb-r1.media"
            ):
                side(thing)
            assert side({"text": "a"}) == side("a") == Side("a"), "texts need none of them"


def test_media_of_features_alone_are_frames_without_a_size() -> None:
    media = Media("frame", "d", features=torch.zeros(2, 3))
    assert clip([media, media]) == (media, media)
