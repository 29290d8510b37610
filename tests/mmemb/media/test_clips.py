"""Clips: upright frames by time; what is cut, damaged, no video or too much is refused by name."""

from __future__ import annotations

import struct
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from datamodules.prepare.folder.media import side_members
from mmemb.media import clips, containers
from mmemb.media.clips import is_animated, nearest_frames, read_clip
from mmemb.media.frames import natural_order
from mmemb.media.picture_files import encoded_clip
from tests.fixtures.tiny_clips import (
    EVEN,
    SIZE,
    Pipe,
    grey,
    shortened,
    turned,
    write_sound,
    write_video,
)

UNEVEN = (0, 50, 90, 100, 1000, 1010, 1500, *range(2000, 3300, 100))


def stated_size(path: Path) -> int | None:
    with path.open("rb") as file:
        return containers.stated_size(file)


def numbers(path: Path, num: int) -> list[int]:
    """Which frames were taken, by their brightness."""
    return [round((np.asarray(image).mean() - 10) / 10) for image in read_clip(path, num)]


@given(
    times=st.lists(st.integers(-9, 60), min_size=1, max_size=12, unique=True).map(sorted),
    num=st.integers(1, 9),
    scale=st.integers(1, 10**12),
)
@example(times=[0, 1, 2, 3, 100], num=4, scale=1)
def test_chosen_frames_are_the_nearest_to_evenly_spaced_times(
    times: list[int], num: int, scale: int
) -> None:
    found = nearest_frames(times, num)
    assert len(found) == min(num, len(times))
    assert found == sorted(found)
    assert nearest_frames([scale * time + 7 for time in times], num) == found
    if len(times) <= num:
        assert found == list(range(len(times)))
        return

    # The slow and obvious way, in exact fractions; the earlier one of two that are equally near.
    for step, frame in enumerate(found):
        share = Fraction(step, max(1, num - 1))
        wanted = times[0] + share * (times[-1] - times[0])
        distances = [abs(time - wanted) for time in times]
        assert frame == distances.index(min(distances))


@given(count=st.integers(1, 40), num=st.integers(2, 9), gap=st.integers(1, 4000))
def test_frames_of_even_times_are_as_by_their_number(count: int, num: int, gap: int) -> None:
    found = nearest_frames([gap * number for number in range(count)], num)
    assert found == nearest_frames(range(count), num)
    if count > num:
        spaced = np.linspace(0, count - 1, num)
        assert np.abs(np.array(found) - spaced).max() <= 0.5
        assert all(one < two for one, two in pairwise(found))


def test_times_that_do_not_rise_are_not_believed() -> None:
    assert nearest_frames([5, 5, 5, 5, 5], 3) == [0, 2, 4]
    assert nearest_frames([0, 1, 2, 0, 1, 2, 3], 3) == [0, 3, 6]


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("c.mp4", "libx264"),
        ("c.mkv", "libx264"),
        ("c.webm", "libvpx"),
        ("c.mov", "mpeg4"),
        ("c.avi", "mpeg4"),
    ],
)
def test_every_container_is_read_and_none_that_was_cut(
    tmp_path: Path, name: str, codec: str
) -> None:
    path = write_video(tmp_path / name, codec=codec, options=_fast_start(name))
    assert numbers(path, 3) == [0, 9, 19]
    whole = path.read_bytes()
    assert stated_size(path) == len(whole)
    for share in (0, 0.1, 1 / 3, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(
            ValueError, match=rf"^{name} (is cut: it has \d+ bytes|cannot be decod)"
        ):
            read_clip(path, 3)


def test_a_transport_stream_is_read_and_a_cut_inside_a_packet_seen(tmp_path: Path) -> None:
    """It states no length: a file that was cut between packets is a shorter one."""
    path = write_video(tmp_path / "c.ts")
    assert numbers(path, 3) == [0, 9, 19]
    whole = path.read_bytes()
    path.write_bytes(whole[: 188 * 20 - 1])
    with pytest.raises(ValueError, match=r"^c\.ts is cut: it has 3759 bytes and states 3760"):
        read_clip(path, 3)


def _fast_start(name: str) -> dict[str, str]:
    """The index in front, so that a file that was cut still opens."""
    return {"movflags": "faststart"} if name.endswith((".mp4", ".mov")) else {}


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.webm"])
def test_frames_of_uneven_times_are_taken_by_time(tmp_path: Path, name: str) -> None:
    codec = "libvpx-vp9" if name == "v.webm" else "libx264"
    path = write_video(tmp_path / name, UNEVEN, codec=codec)
    assert numbers(path, 3) == [0, 6, 19], "1500 ms is nearest to the middle, number 9 at 2200"
    still = write_video(tmp_path / f"still{path.suffix}", [0, 100, 200, 300, 9000], codec=codec)
    assert numbers(still, 4) == [0, 3, 4, 4]


MATRICES = [
    (1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0),
    (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0),
]  # fmt: skip


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_turned_or_mirrored_clip_is_upright(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    """Expected pixel by pixel from what a display matrix means."""
    stored_HW3 = np.zeros((32, 48, 3), np.uint8)
    stored_HW3[:16, :24], stored_HW3[:16, 24:], stored_HW3[16:, :24] = 240, 160, 80
    path = turned(write_video(tmp_path / "c.mp4", [0, 100], pictures=[stored_HW3] * 2), matrix)

    a, b, c, d = matrix
    y_HW, x_HW = np.mgrid[:32, :48]
    shown_x_HW, shown_y_HW = a * x_HW + c * y_HW, b * x_HW + d * y_HW
    shown_x_HW, shown_y_HW = shown_x_HW - shown_x_HW.min(), shown_y_HW - shown_y_HW.min()
    expected = np.zeros((shown_y_HW.max() + 1, shown_x_HW.max() + 1), np.uint8)
    expected[shown_y_HW, shown_x_HW] = stored_HW3[..., 0]

    for image in read_clip(path, 2):
        found = np.asarray(image.convert("L")).astype(int)
        assert found.shape == expected.shape
        assert np.median(np.abs(found - expected)) <= 3
        assert np.abs(found - expected).mean() < 8


def test_a_matrix_counts_by_its_angle_alone(tmp_path: Path) -> None:
    path = write_video(tmp_path / "c.mp4", [0, 100])
    assert read_clip(turned(path, (0, 1, -1, 0), scale=3 << 14), 2)[0].size == SIZE[::-1]
    assert read_clip(turned(path, (0, 0, 0, 0)), 2)[0].size == SIZE
    with pytest.raises(ValueError, match=r"c\.mp4 is turned by an angle that is no multiple of 90"):
        read_clip(turned(path, (1, 1, -1, 1)), 2)


def test_pixels_that_are_not_square_become_square(tmp_path: Path) -> None:
    path = write_video(tmp_path / "c.mp4", aspect=Fraction(4, 3))
    assert {image.size for image in read_clip(path, 3)} == {(64, 32)}


def test_what_is_transparent_in_a_clip_is_white(tmp_path: Path) -> None:
    clear = np.zeros((32, 48, 4), np.uint8)
    path = write_video(
        tmp_path / "c.mov", [0, 100], codec="png", pixels="rgba", pictures=[clear] * 2
    )
    assert read_clip(path, 2)[0].getextrema() == ((255, 255),) * 3


def test_whole_clips_of_odd_lengths_are_read(tmp_path: Path) -> None:
    """Nothing is missing: sound may be longer, an edit list hides frames, a stream states none."""
    for name in ("sound.mp4", "sound.mkv"):
        assert numbers(write_video(tmp_path / name, seconds_of_sound=5), 3) == [0, 9, 19]
    still = write_video(tmp_path / "still.mkv", [0], seconds_of_sound=5)
    assert numbers(still, 3) == [0], "a song with its picture"
    late = write_video(tmp_path / "late.mp4", [5000 + time for time in EVEN])
    assert numbers(late, 3) == [0, 9, 19]
    assert numbers(shortened(write_video(tmp_path / "edited.mp4"), 10, 10), 3) == [10, 14, 19]
    assert numbers(write_video(tmp_path / "one.mp4", [0]), 3) == [0]
    held = write_video(tmp_path / "held.mp4", [0, 100, 200, 9000])
    held.write_bytes(held.read_bytes() + b"\0" * 99)
    assert numbers(held, 4) == [0, 1, 2, 3], "what stands behind the end is not read"

    with (tmp_path / "live.mkv").open("wb") as file:
        live = write_video(tmp_path / "live.mkv", target=Pipe(file))
    assert stated_size(live) is None
    assert numbers(live, 3) == [0, 9, 19]
    parts = {"movflags": "frag_keyframe+empty_moov"}
    assert numbers(write_video(tmp_path / "parts.mp4", options=parts), 3) == [0, 9, 19]


def test_frames_that_end_before_the_stated_length_are_a_fault(tmp_path: Path) -> None:
    """Cut between two frames, and its box lengthened to whatever the file has."""
    path = write_video(tmp_path / "c.mp4", options={"movflags": "faststart"})
    with av.open(str(path)) as video:
        at = [packet.pos for packet in video.demux(video=0) if packet.size][7]
    data = bytearray(path.read_bytes()[:at])
    start = data.index(b"mdat")
    data[start - 4 : start] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"^c\.mp4 is cut: its frames end after 0\.\d s, it st.* 2.0 s"
    ):
        read_clip(path, 3)


def test_what_is_no_video_says_so(tmp_path: Path) -> None:
    for cover, more in ((False, ""), (True, " and a picture as its cover")):
        path = write_sound(tmp_path / "a.mp4", cover)
        with pytest.raises(ValueError, match=rf"^a\.mp4 holds no video, but sound{more}\.$"):
            read_clip(path, 3)
    path = write_video(tmp_path / "u.mkv")
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XXX"))
    with pytest.raises(ValueError, match=r"^u\.mkv is stored in a way that nothing here decodes"):
        read_clip(path, 3)
    (tmp_path / "e.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^e\.mp4 cannot be decoded"):
        read_clip(tmp_path / "e.mp4", 3)


@given(
    head=st.sampled_from(
        [b"\0\0\0\x08ftyp", b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"RIFF", b"GIF89a", b"G"]
    ),
    rest=st.binary(max_size=40) | st.text("\0\x01\xff;,!mdat", max_size=40).map(str.encode),
)
def test_any_bytes_have_a_stated_size_or_none(
    tmp_path_factory: pytest.TempPathFactory, head: bytes, rest: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(head + rest)
    found = stated_size(path)
    assert found is None or found >= 0


def test_frames_of_changing_size_are_a_fault(tmp_path: Path) -> None:
    small = write_video(tmp_path / "a.ts").read_bytes()
    large = [grey(number, (64, 48)) for number in range(20)]
    path = write_video(tmp_path / "b.ts", pictures=large)
    path.write_bytes(small + path.read_bytes())
    with pytest.raises(ValueError, match=r"changes its size from 48 x 32 to 64 x 48 .* frame 20"):
        read_clip(path, 3)


def test_a_folder_of_frames_of_several_sizes_is_a_fault(tmp_path: Path) -> None:
    """As they are shown: EXIF data may turn a frame."""
    for number, shape in enumerate([(32, 48), (32, 48), (48, 32)]):
        image = Image.fromarray(np.full((*shape, 3), 80 * number, np.uint8))
        exif = image.getexif()
        exif[274] = 6 if number == 2 else 1
        image.save(tmp_path / f"f{number}.png", exif=exif)
    assert len(encoded_clip(tmp_path, 3)) == 3
    Image.new("RGB", (32, 48)).save(tmp_path / "f3.png")
    with pytest.raises(ValueError, match=r"f3\.png has 32 x 48 pixels, f0\.png 48 x 32: expected"):
        encoded_clip(tmp_path, 4)


def test_a_damaged_frame_is_a_fault(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 32, 48, 3), dtype=np.uint8)
    path = write_video(tmp_path / "c.avi", codec="mpeg4", pictures=list(noise))
    with av.open(str(path)) as video:
        at = [packet.pos for packet in video.demux(video=0) if packet.size][9]
    data = bytearray(path.read_bytes())
    data[at + 200 : at + 600] = bytes(400)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"^c\.avi (is damaged in its frame at|cannot be decoded)"):
        read_clip(path, 20)


@pytest.mark.parametrize(
    ("bound", "enough", "words"),
    [
        ("MAX_FRAMES", 20, "is too long: at most 19 frames"),
        ("MAX_CLIP_PIXELS", 20 * 48 * 32, "is too long"),
        ("MAX_FRAME_PIXELS", 48 * 32, "has frames of 48 x 32 pixels"),
    ],
)
@pytest.mark.parametrize("name", ["c.mp4", "c.gif"])
def test_a_clip_costs_no_more_than_the_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, bound: str, enough: int, words: str
) -> None:
    path = tmp_path / name
    if path.suffix == ".gif":
        write_animation(path, 20)
    else:
        write_video(path)
    monkeypatch.setattr(clips, bound, enough)
    read_clip(path, 2)
    monkeypatch.setattr(clips, bound, enough - 1)
    with pytest.raises(ValueError, match=rf"^{name} {words}"):
        read_clip(path, 2)


def write_animation(path: Path, count: int, lengths: tuple[int, ...] = (100,)) -> Path:
    frames = [Image.fromarray(grey(number)) for number in range(count)]
    duration = [lengths[number % len(lengths)] for number in range(count)]
    more = {} if path.suffix == ".gif" else {"lossless": True}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, **more)
    return path


def test_a_frame_larger_than_its_gif_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = write_animation(tmp_path / "c.gif", 3)
    data = path.read_bytes()
    # Of the last frame: a mark, left, top, width and height.
    head, whole, pixels = data.rpartition(struct.pack("<c4H", b",", 0, 0, 48, 32))
    assert whole
    path.write_bytes(head + struct.pack("<c4H", b",", 0, 0, 60000, 1000) + pixels)
    with pytest.raises(ValueError, match=r"^c.gif changes its size .* to 60000 x 1000 pixels"):
        read_clip(path, 2)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_a_picture_that_moves_is_a_clip(tmp_path: Path, suffix: str) -> None:
    path = write_animation(tmp_path / f"c.{suffix}", 9, (100, 900, 100))
    assert is_animated(path)
    assert numbers(path, 3) == [0, 4, 8]
    members = side_members(tmp_path, [path.name], "q", 3)
    assert [*members] == ["q0.000.webp", "q0.001.webp", "q0.002.webp"]

    still = write_animation(tmp_path / f"still.{suffix}", 1)
    assert not is_animated(still)
    kept = {"gif": "q0.000.webp"}.get(suffix, f"q0.{suffix}")
    assert [*side_members(tmp_path, [still.name], "q", 3)] == [kept]

    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"^c\.{suffix} (is cut|cannot be decoded)"):
        read_clip(path, 3)


def test_a_picture_for_viewers_without_animation_is_no_frame(tmp_path: Path) -> None:
    stills = [Image.fromarray(grey(number)) for number in range(4)]
    stills[3].save(
        tmp_path / "c.png", save_all=True, append_images=stills[:3], default_image=True, duration=9
    )
    assert numbers(tmp_path / "c.png", 3) == [0, 1, 2]


def test_lengths_of_animated_frames_count(tmp_path: Path) -> None:
    path = write_animation(tmp_path / "c.gif", 5, (1000, 100, 100, 100, 100))
    assert numbers(path, 3) == [0, 1, 4], "1000 ms is nearest to the middle of 0 and 1300 ms"
    path.rename(tmp_path / "c.mp4")
    assert numbers(tmp_path / "c.mp4", 3) == [0, 1, 4], "by its bytes, not by its name"


def test_a_digit_that_is_no_number_is_sorted_as_a_letter() -> None:
    names = [Path("f10.png"), Path("f\N{SUPERSCRIPT TWO}.png"), Path("f9.png")]
    found = [path.name for path in sorted(names, key=natural_order)]
    assert found == ["f9.png", "f10.png", "f\N{SUPERSCRIPT TWO}.png"]
