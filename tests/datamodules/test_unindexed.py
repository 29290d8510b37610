"""Streamed tars that are broken: a fault that names tar and place, and never a shorter tar."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from datamodules.archives import ArchiveLimits
from datamodules.pairs import PairDataModule
from tests.fixtures.tars import member, pack, unpack
from tests.fixtures.tiny_data import write_tiny

SIXTEEN = 16
Change = Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = write_tiny(tmp_path_factory.mktemp("tiny"))
    return (root / "pairs/plain/plain-000000.tar").read_bytes()


@pytest.fixture
def keys(tmp_path: Path) -> Callable[..., list[str]]:
    """Reads one epoch of a tar: writes it, streams it, and gives the keys of what was read."""

    def read(data: bytes, on_error: str = "raise", batches: int = SIXTEEN, **changes) -> list[str]:
        path = tmp_path / "pairs.tar"
        path.write_bytes(data)
        arguments = {"pairs": [str(path)], "batch_size": 1, "group_size": 1, "source_weights": {}}
        module = PairDataModule(
            str(tmp_path), **(arguments | {"seed": 0, "on_error": on_error} | changes)
        )
        return [key for batch in islice(module.train_dataloader(), batches) for key in batch.keys]

    return read


def text_only(files: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The first sample has a text on both sides, so that it could go on as text."""
    (name, data), *rest = files
    return [(name, json.dumps(json.loads(data) | {"target_text": "a flag"}).encode()), *rest]


def test_a_whole_tar_is_read_whole(tar: bytes, keys: Callable[..., list[str]]) -> None:
    assert len(set(keys(tar))) == SIXTEEN


def test_no_cut_at_a_block_goes_unnoticed(
    tar: bytes, keys: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    """30 of 99 such cuts were a shorter tar without a word."""
    for end in range(512, len(tar.rstrip(b"\0")), 512):
        with pytest.raises(ValueError, match=r"Tar .*pairs\.tar, offset \d+: it "):
            keys(tar[:end])

    for end in (len(tar) // 3 // 512 * 512, len(tar) // 2):
        caplog.clear()
        found = keys(tar[:end], "skip", 1)  # an epoch is what could be read
        assert found
        (warning,) = [line for line in caplog.messages if "offset" in line]
        assert "pairs.tar" in warning
        assert "sample(s) were read, all that follow are left out" in warning


def test_a_damaged_header_is_no_end(tar: bytes, keys: Callable[..., list[str]]) -> None:
    with pytest.raises(ValueError, match=r"pairs\.tar, offset \d+: .*header that does not read"):
        keys(tar.replace(b"ustar", b"vstar", 3).replace(b"vstar", b"ustar", 2))


def test_under_skip_the_other_tars_go_on(
    tar: bytes,
    keys: Callable[..., list[str]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "cut.tar").write_bytes(tar[: len(tar) // 2])
    both = [str(tmp_path / name) for name in ("cut.tar", "pairs.tar")]
    assert len(set(keys(tar, "skip", 40, pairs=both))) == SIXTEEN
    (warning,) = [line for line in caplog.messages if "offset" in line]  # once, not every epoch
    assert "cut.tar" in warning


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("cat /nowhere.tar 2>/dev/null", "offset 0: it"),
        ("cat {} && exit 3", "exit 3"),
        ("head -c 20000 {}", "it ends within"),
    ],
)
def test_a_pipe_that_fails(
    tar: bytes, keys: Callable[..., list[str]], tmp_path: Path, command: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        keys(tar, pairs=[f"pipe:{command.format(tmp_path / 'pairs.tar')}"])


def test_a_tar_that_is_not_there(tar: bytes, keys: Callable[..., list[str]]) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.tar cannot be opened: .* `pairs`"):
        keys(tar, "skip", pairs=["/nowhere.tar"])


def test_limits_are_settings(tar: bytes, keys: Callable[..., list[str]]) -> None:
    with pytest.raises(ValueError, match="more than 3 members or 256 MiB"):
        keys(tar, archive_limits=ArchiveLimits(num_members=3))
    assert keys(tar, archive_limits=ArchiveLimits(num_members=4, member_mib=1, sample_mib=1))
    with pytest.raises(ValueError, match="at least 1"):
        ArchiveLimits(ratio=0)


def _renamed(old: str, new: str) -> Change:
    return lambda files: [(name.replace(old, new), data) for name, data in files]


LOST: dict[str, tuple[Change, str]] = {
    "unknown suffix": (_renamed("0.t0.webp", "0.t0.gif"), "member 't0.gif' is no picture"),
    "no number": (_renamed("0.t0.webp", "0.t.png"), "member 't.png' is no picture"),
    "no side": (_renamed("0.t0.webp", "0.jpg"), "member 'jpg' is no picture"),
    "a candidate's": (_renamed("0.t0.webp", "0.c0.webp"), "member 'c0.webp' is no picture"),
    "from 1 on": (_renamed("0.t0.webp", "0.t1.webp"), "side t has the pictures t1.webp: expected"),
    "a hole": (
        lambda files: [*files[:2], (files[1][0].replace("t0", "t2"), files[1][1]), *files[2:]],
        "t0.webp, t2.webp: expected t0, t1, ... without a hole",
    ),
    "twice": (
        lambda files: [*files[:2], (files[1][0].replace("webp", "png"), files[1][1]), *files[2:]],
        "each of them once",
    ),
    "no picture": (lambda files: [files[0], (files[1][0], b"junk"), *files[2:]], "cannot be"),
    "no json": (lambda files: files[1:], "lacks its member json"),
}


@pytest.mark.parametrize("case", LOST)
def test_a_sample_that_lost_its_pictures_does_not_go_on_as_text(
    tar: bytes,
    keys: Callable[..., list[str]],
    caplog: pytest.LogCaptureFixture,
    case: str,
) -> None:
    change, said = LOST[case]
    samples = sorted(unpack(tar), key=lambda file: ("flag-name" not in file[0], file[0]))
    lost = text_only([(name.replace("flag-name-00", "0"), data) for name, data in samples])
    changed = pack(change(lost))
    with pytest.raises(ValueError, match="sample 0") as caught:
        keys(changed)
    assert said in str(caught.value)

    assert len(set(keys(changed, "skip", 40))) == SIXTEEN - 1
    assert sum(said in line for line in caplog.messages) == 1


def test_a_text_of_blanks_is_an_empty_side(tar: bytes, keys: Callable[..., list[str]]) -> None:
    (name, data), *rest = unpack(tar)
    data = json.dumps(json.loads(data) | {"text": " \u200b\n"}).encode()
    with pytest.raises(ValueError, match="side q is empty"):
        keys(pack([(name, data), *rest]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_in_place_of_a_picture_is_not_followed(
    tar: bytes, keys: Callable[..., list[str]], kind: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (name, data), (picture, _), *rest = text_only(unpack(tar))
    broken = member(name, data) + member(picture, kind=kind, linkname=name) + pack(rest)
    with pytest.raises(ValueError, match=r"is a (link|device), and no file"):
        keys(broken)
    assert len(set(keys(broken, "skip", 40))) == SIXTEEN - 1
    assert "is a" in caplog.text


def test_members_of_nobody_are_named_once(
    tar: bytes, keys: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    (first, *rest) = unpack(tar)
    added = [(".DS_Store", b""), (f"._{first[0]}", b""), first, (f"x/._{rest[0][0]}", b"")]
    folder = member("pairs/", kind=tarfile.DIRTYPE)
    with pytest.raises(ValueError, match="sample z lacks"):
        keys(folder + pack([*added, *rest, ("z.cls", b"")]))
    caplog.clear()

    key = rest[-1][0].split(".")[0]
    packed = folder + pack([*added, *rest, (f"{key}.cls", b"1")])
    assert len(set(keys(packed, batches=40))) == SIXTEEN
    (warning,) = [line for line in caplog.messages if "belong to no sample" in line]
    assert "pairs.tar: 4 member(s)" in warning
    assert "such as .DS_Store" in warning


def test_a_tar_of_zeros_among_others_is_told_once(
    tar: bytes, keys: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "zeros.tar").write_bytes(bytes(len(tar) // 512 * 512))
    both = [str(tmp_path / name) for name in ("zeros.tar", "pairs.tar")]
    assert len(set(keys(tar, batches=40, pairs=both))) == SIXTEEN
    (warning,) = [line for line in caplog.messages if "holds no sample" in line]
    assert "zeros.tar" in warning

    with pytest.raises(ValueError, match="Not one pair could be read from .*zeros.tar: expected"):
        keys(tar, pairs=both[:1])


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_tar_that_is_not_sorted_by_key_is_an_error(
    tar: bytes, keys: Callable[..., list[str]], on_error: str
) -> None:
    """Its JSON came first, and every sample went on as text."""
    files = sorted(text_only(unpack(tar)), key=lambda file: not file[0].endswith("json"))
    with pytest.raises(ValueError, match=r"stands at two places.*--sort=name"):
        keys(pack(files), on_error, 40)


def test_few_bytes_are_held_to_draw_from(
    tar: bytes, keys: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from datamodules import unindexed

    drawn: list[int] = []
    inner = unindexed._draw
    monkeypatch.setattr(unindexed, "SHUFFLE_BYTES", 1)
    monkeypatch.setattr(
        unindexed, "_draw", lambda held, r: drawn.append(len(held)) or inner(held, r)
    )
    assert len(set(keys(tar))) == SIXTEEN
    assert set(drawn) == {1}
