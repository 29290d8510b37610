"""Tars and zip files from elsewhere: every member whole, or one fault, nothing without bound."""

from __future__ import annotations

import gzip
import io
import shutil
import subprocess
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.archives import (
    ArchiveError,
    ArchiveLimits,
    TarMember,
    open_zip,
    read_tar,
    read_zip_member,
)
from datamodules.tar_samples import ForeignMembers, SplitSampleError, TarSample, samples_of
from tests.fixtures.tars import END, member, pack, unpack

LIMITS = ArchiveLimits()
SMALL = ArchiveLimits(member_mib=1, sample_mib=2, num_members=3, ratio=5)
LAYOUTS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
FILES = [
    (f"{number:03d}.{name}", bytes([65 + number]) * (number * 300 + 5))
    for number in range(4)
    for name in ("json", "t0.png", "t1.png")
]
LONG = [("folder/" * 30 + name, data) for name, data in FILES]


def read(data: bytes, limits: ArchiveLimits = LIMITS) -> list[TarMember]:
    return list(read_tar(io.BytesIO(data), "Tar x.tar", limits))


def files(data: bytes) -> list[tuple[str, bytes]]:
    return [(found.name, found.data) for found in read(data)]


def grouped(data: bytes, limits: ArchiveLimits = LIMITS) -> list[TarSample]:
    members = read_tar(io.BytesIO(data), "Tar x.tar", limits)
    return list(samples_of(members, "Tar x.tar", limits, ForeignMembers()))


def refused(data: bytes, limits: ArchiveLimits = LIMITS) -> str:
    with pytest.raises(ArchiveError) as caught:
        grouped(data, limits)
    return str(caught.value)


def _brief(value: bytes | str) -> str:
    return value or "read" if isinstance(value, str) else f"{len(value)}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("packed", [lambda data: data, gzip.compress])
def test_members_are_those_of_tarfile(layout: int, packed: Callable[[bytes], bytes]) -> None:
    label = member("tape", kind=b"V")
    for wanted in (FILES, LONG[:3] if layout else FILES, [("a\u00e9\u732b.txt", b"1")]):
        tar = pack(wanted, layout)
        assert files(packed(label + tar)) == wanted
        assert files(packed(tar)) == unpack(tar) == wanted


@pytest.mark.skipif(not shutil.which("tar"), reason="needs GNU tar")
@pytest.mark.parametrize("layout", ["v7", "ustar", "gnu", "oldgnu", "posix"])
def test_what_gnu_tar_writes(layout: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/0.json").write_bytes(b"{}")
    (tmp_path / "a/0.t0.png").write_bytes(bytes(9000))
    command = ["tar", f"--format={layout}", "--sort=name", "-cf", "-", "-C", str(tmp_path), "a"]
    found = read(subprocess.run(command, capture_output=True, check=True).stdout)
    assert [(m.name.rstrip("/"), m.kind, len(m.data)) for m in found] == [
        ("a", "folder", 0),
        ("a/0.json", "file", 2),
        ("a/0.t0.png", "file", 9000),
    ]


@pytest.mark.parametrize(("layout", "wanted"), [(0, FILES), (1, LONG), (2, LONG)])
def test_a_cut_at_every_block_is_a_fault_or_loses_nothing(
    layout: int, wanted: list[tuple[str, bytes]]
) -> None:
    tar = pack(wanted, layout)
    for end in range(0, len(tar), 512):
        if end < len(tar) - len(END) + 512:
            assert "offset" in refused(tar[:end])
        else:
            assert files(tar[:end]) == wanted, "one block of zeros at the end is an end, too"


def test_every_cut_of_a_gzip_file_is_a_fault() -> None:
    tar = gzip.compress(pack(FILES))
    for end in range(len(tar)):
        assert "x.tar, offset" in refused(tar[:end])
    assert "Not a gzipped file" in refused(tar + b"more")
    assert files(tar + gzip.compress(b"")) == FILES


@given(st.data())
def test_a_damaged_header_loses_no_sample_in_silence(data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(LAYOUTS))
    tar = bytearray(pack(LONG if layout else FILES, layout))
    bodies = {text[:512] for _, text in FILES}
    starts = [at for at in range(0, len(tar), 512) if bytes(tar[at : at + 4]) not in bodies]
    at = data.draw(st.sampled_from(starts)) + data.draw(st.integers(0, 511))
    tar[at] = data.draw(st.integers(0, 255))
    try:
        found = grouped(bytes(tar))
    except (ArchiveError, SplitSampleError):
        return
    assert len(found) >= 4


@given(st.binary(max_size=2000), st.integers(0, 5), st.integers(0, 300))
def test_any_bytes_are_members_or_one_fault(junk: bytes, number: int, at: int) -> None:
    tar = pack(FILES[:number], end=b"")
    for data in (junk, tar + junk, tar[:at] + junk + tar[at:] + END):
        with suppress(ArchiveError, SplitSampleError):
            grouped(data)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (END, ""),
        (bytes(10240), ""),
        (bytes(512), ""),
        (b"", "stops without the blocks of zeros"),
        (bytes(100), ""),
        (END + pack(FILES), "goes on behind its end"),
        (bytes(512) + pack(FILES), "block of zeros in place of a header"),
        (bytes(2 << 20), "more than 1048576 bytes of zeros"),
    ],
    ids=_brief,
)
def test_the_end(end: bytes, said: str) -> None:
    tar = pack(FILES, end=end)
    if said:
        assert said in refused(tar)
    else:
        assert files(tar) == FILES


def _chain(header: bytes, number: int = 500) -> bytes:
    return header * number + pack(FILES)


LONG_NAME = member("././@LongLink", b"a.json\0", b"L")


@pytest.mark.parametrize(
    ("tar", "said"),
    [
        (_chain(LONG_NAME), "more than 8 headers before one member"),
        (_chain(member("p", b"11 path=xy\n", b"x")), "more than 8 headers before one member"),
        (_chain(member("p", b"11 comment=y\n", b"g")), "pax header that does not read"),
        (member("p", b"12345678901234567890 path=x\n", b"x") + pack(FILES), "does not read"),
        (member("p", b"11 path=x\n", b"x") + pack(FILES), "does not read"),
        (member("p", b"29 size=99999999999999999999\n", b"x") + pack(FILES), "states the size"),
        (member("p", b"28 size=9999999999999999999\n", b"x") + pack(FILES), "a file of 99999999"),
        (member("p", b"11 size=-1\n", b"x") + pack(FILES), "states the size b'-1'"),
        (member("p", b"10 size=3\n", b"g") + pack(FILES), "to all members"),
        (member("p", b"22 GNU.sparse.major=1\n", b"x") + pack(FILES), "sparse"),
        (member("p", b"x" * 70_000, b"L") + pack(FILES), "header of 70000 bytes"),
        (member("p", b"x" * 5000, b"L") + pack(FILES), "a name of 5000 letters"),
        (LONG_NAME + END, "between the headers of one member"),
        (member("a.json", kind=b"S", size=1 << 30) + END, "a member that is sparse"),
        (member("a.json", kind=b"M") + END, "of type b'M'"),
        (b"", "is empty, and no tar"),
        (b"version https://git-lfs.github.com/spec/v1", "does not begin as a tar does"),
        (b"<!DOCTYPE html>" + bytes(600), "does not begin as a tar does"),
        (member("a.json", size=1 << 40, layout=1) + END, "a file of 1099511627776 bytes"),
        (member("a.json", size=-5, layout=1) + END, "a file of -5 bytes"),
        (member("a.t0.png", kind=b"1", size=9, linkname="b") + END, "a link of 9 bytes"),
        (b"BZh91AY" + bytes(600), "packed by bzip2"),
    ],
    ids=_brief,
)
def test_what_is_not_read_is_one_fault(tar: bytes, said: str) -> None:
    assert said in refused(tar)
    assert "Tar x.tar, offset" in refused(tar)


def test_links_devices_and_folders_hold_no_data_and_are_not_followed() -> None:
    tar = member("a.json", b"{}") + member("a.t0.png", kind=b"2", linkname="/etc/passwd")
    tar += member("b.json", b"{}") + member("b.t0.png", kind=b"1", linkname="a.json")
    tar += member("c.json", kind=b"6") + member("d/", kind=b"5") + member("d/e.json", b"{}") + END
    assert {found.kind: found.data for found in read(tar)} == {
        **dict.fromkeys(("link", "device", "folder"), b""),
        "file": b"{}",
    }
    assert [(found.key, found.problem) for found in grouped(tar)] == [
        ("a", "member t0.png is a link, and no file"),
        ("b", "member t0.png is a link, and no file"),
        ("c", "member json is a device, and no file"),
        ("d/e", ""),
    ]


def test_sizes_numbers_and_compression_are_bounded() -> None:
    large = refused(pack([("a.json", bytes(2**20 + 1))]), SMALL)
    assert "a file of 1048577 bytes" in large
    assert "raise `archive_limits`" in large
    many = [(f"a.q{number}.png", b"") for number in range(4)]
    assert "sample a has more than 3 members" in refused(pack(many), SMALL)
    heavy = [(f"a.q{number}.png", bytes(1 << 20)) for number in range(2)]
    assert "or 2 MiB" in refused(pack(heavy), SMALL)

    bomb = gzip.compress(pack([(f"{n}.json", bytes(1 << 20)) for n in range(20)]), 1)
    assert len(bomb) < 1 << 20
    assert "less than 1/5" in refused(bomb, SMALL)


def test_a_bomb_takes_no_more_memory_than_a_member_may() -> None:
    """One member of 700 MiB in 700 kB: 763 MB were taken."""
    header = member("a.json", size=700 << 20, layout=tarfile.GNU_FORMAT)
    bomb = gzip.compress(header + bytes(32 << 20), 1)  # more is never asked for
    tracemalloc.start()
    assert "a file of 734003200 bytes" in refused(bomb)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_samples_are_members_that_follow_each_other() -> None:
    tar = pack([("a.json", b"1"), ("a.T0.PNG", b"2"), ("x/b.c/d.q0.000.png", b"3")])
    assert [(found.key, found.data) for found in grouped(tar)] == [
        ("a", {"json": b"1", "t0.png": b"2"}),
        ("x/b.c/d", {"q0.000.png": b"3"}),
    ]
    twice = pack([("a.json", b"1"), ("a.JSON", b"2")])
    assert grouped(twice)[0].problem == "member json is there twice"
    with pytest.raises(SplitSampleError, match=r"x\.tar: sample a stands at two places"):
        grouped(pack([("a.json", b""), ("b.json", b""), ("a.png", b"")]))


def test_what_macos_and_others_add_splits_no_sample() -> None:
    names = ["._a.json", "a.json", "a.PaxHeader/x", "d/._b.png", "a.t0.png", "__MACOSX/a.json"]
    names += [".DS_Store", "PaxHeaders.7/a.png", "README", "__meta__", "./c.json", "Thumbs.db"]
    names += ["x/desktop.ini", "c.t0.png:Zone.Identifier", "@eaDir/c.t0.png", "thumbs.db/d.json"]
    foreign = ForeignMembers()
    tar = io.BytesIO(pack([(name, b"") for name in names]))
    found = samples_of(read_tar(tar, "Tar x", LIMITS), "Tar x", LIMITS, foreign)
    assert [(sample.key, [*sample.data]) for sample in found] == [
        ("a", ["json", "t0.png"]),
        ("./c", ["json"]),
    ]
    assert (foreign.count, foreign.first) == (13, "._a.json")


def test_a_pipe_that_fails_behind_the_end_is_a_fault() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int = -1, /) -> bytes:
            if data := super().read(size):
                return data
            raise OSError("exit 3")

    with pytest.raises(ArchiveError, match="cannot be read on: exit 3"):
        list(read_tar(Failing(pack(FILES)), "Tar x", LIMITS))


def _zip(path: Path, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("small", b"abc")
        if compression == zipfile.ZIP_DEFLATED:
            archive.writestr("large", bytes(26 << 20))
    return path


def test_members_of_zip_files_are_bounded(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip")
    with open_zip(path) as archive:
        assert read_zip_member(archive, "small", SMALL) == b"abc"
        for name, limits, said in (
            ("large", SMALL, r"a\.zip, member 'large' has 27262976 bytes \(the limit is 1 MiB\)"),
            ("large", LIMITS, "compressed to less than 1/200"),
            ("absent", LIMITS, "member 'absent' is missing"),
        ):
            with pytest.raises(ArchiveError, match=said):
                read_zip_member(archive, name, limits)
    with (
        open_zip(_zip(tmp_path / "b.zip", zipfile.ZIP_LZMA)) as archive,
        pytest.raises(ArchiveError, match="unusual way"),
    ):
        read_zip_member(archive, "small", LIMITS)


def test_a_broken_zip_file_is_one_fault(tmp_path: Path) -> None:
    whole = _zip(tmp_path / "a.zip").read_bytes()
    path = tmp_path / "broken.zip"
    path.write_bytes(whole[:-40])
    with pytest.raises(ArchiveError, match=r"broken\.zip cannot be read as a zip file"):
        open_zip(path)

    path.write_bytes(whole[:35] + b"\xff" + whole[36:])  # the first letter of the first member
    with open_zip(path) as archive, pytest.raises(ArchiveError, match="member 'small' cannot be"):
        read_zip_member(archive, "small", LIMITS)
