"""Every command, killed where it changes something on disk, ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.fixtures.kill_commands import WRITERS, Site, needed_by, preload
from tests.fixtures.kill_harness import Bench, Instant, kinds_of

Benches = Callable[[str], Bench]

MOST_KILLS = 3
"""Kills of a command in the slow test; `python -m tests.fixtures.kill_harness` makes all."""


@pytest.fixture(scope="module")
def bench_of(tmp_path_factory: pytest.TempPathFactory) -> Benches:
    """Makes a command's bench; the commands that it needs run before, once."""
    folder = tmp_path_factory.mktemp("kills")
    site, benches = Site(folder / "site"), dict[str, Bench]()

    def bench_of(name: str) -> Bench:
        for one in [*needed_by(name), name]:
            if one not in benches:
                writer = site.writer(one)
                benches[one] = Bench(writer.run, writer.folder, folder / one)
        return benches[name]

    return bench_of


def test_own_data_survive_kills_in_a_shard_beside_it_and_before_the_manifest(
    bench_of: Benches,
) -> None:
    bench = bench_of("prepare-folder")
    renamed = [
        (number, Path(change.path))
        for number, change in enumerate(bench.undisturbed.changes)
        if change.call == "os.rename"
    ]
    shard = next(number for number, path in renamed if path.suffix == ".tar")
    manifest = next(number for number, path in renamed if path == bench.folder / "manifest.json")
    for instant in (Instant(shard, torn=True), Instant(shard), Instant(manifest)):
        kill = bench.kill_at(instant)
        assert kill.hit
        assert not kill.faults, kill


@pytest.mark.slow  # seconds to minutes each
@pytest.mark.parametrize("name", WRITERS)
def test_a_killed_command_ends_as_if_undisturbed(name: str, bench_of: Benches) -> None:
    preload()
    bench = bench_of(name)
    instants = kinds_of(bench.undisturbed.changes)
    chosen = Random(name).sample(instants, min(MOST_KILLS, len(instants)))
    kills = [bench.kill_at(instant) for instant in chosen]
    bench.restore()
    assert all(kill.hit for kill in kills)
    assert not [kill for kill in kills if kill.faults]
