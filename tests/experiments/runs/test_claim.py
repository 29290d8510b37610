"""The folder of a run: each starter has its own, and all ranks of one launch have the same."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callbacks.run_record import fingerprint_of, mark_started
from experiments.runs.claim import RUN_FOLDER, ClaimedFolder, Launch, announce, announced, claim_run
from mmemb.storage.json_files import write_json
from mmemb.storage.locks import LOCK, FolderLock


class Turns:
    """Lets two threads go on one step at a time, in a given order."""

    def __init__(self, order: list[bool]) -> None:
        self._order = order
        self._go = [threading.Semaphore(0), threading.Semaphore(0)]
        self._stopped = [threading.Semaphore(0), threading.Semaphore(0)]
        self.over = [False, False]

    def step(self, starter: int) -> None:
        """Ends a step of a thread; returns when it is its turn again."""
        self._stopped[starter].release()
        self._go[starter].acquire()

    def run(self, threads: list[threading.Thread]) -> None:
        for starter, thread in enumerate(threads):
            thread.start()
            self._stopped[starter].acquire()
        order = iter([*map(int, self._order), *[0, 1] * 50])
        while not all(self.over):
            starter = next(order)
            if not self.over[starter]:
                self._go[starter].release()
                self._stopped[starter].acquire()

    def end(self, starter: int) -> None:
        self.over[starter] = True
        self._stopped[starter].release()


class Locks:
    """Locks of two starters, each of whose acts is a step."""

    def __init__(self, turns: Turns) -> None:
        self.owners: dict[Path, int] = {}
        self._turns = turns

    def take(self, starter: int, folder: Path) -> Any:
        self._turns.step(starter)
        if self.owners.setdefault(folder, starter) != starter:
            raise ValueError("is being written")
        return starter

    @contextlib.contextmanager
    def starting(self, starter: int, folder: Path) -> Iterator[None]:
        self._turns.step(starter)
        while self.owners.setdefault(folder, starter) != starter:
            self._turns.step(starter)
        yield
        self._turns.step(starter)
        del self.owners[folder]


@settings(max_examples=25, deadline=None)
@given(
    order=st.lists(st.booleans(), max_size=12),
    same=st.booleans(),
    before=st.sampled_from([None, "0", "1"]),
)
def test_two_starters_never_share_a_folder(
    order: list[bool], same: bool, before: str | None
) -> None:
    """Whatever their steps' order; `before`: an interrupted run of one of them lies there."""
    with TemporaryDirectory() as name:
        experiment = Path(name)
        if before is not None:
            (experiment / "1-trunk-x").mkdir()
            mark_started(experiment / "1-trunk-x", before)
        turns = Turns(order)
        locks = Locks(turns)
        found: dict[int, Path | str] = {}

        def start(starter: int) -> None:
            turns.step(starter)
            try:
                found[starter], _ = claim_run(
                    experiment, "1-trunk-x", "0" if same else str(starter), pattern="*-trunk-*",
                    take=lambda folder: locks.take(starter, folder),
                    starting=lambda folder: locks.starting(starter, folder),
                )  # fmt: skip
            except ValueError as error:
                found[starter] = str(error)
            turns.end(starter)

        turns.run([threading.Thread(target=start, args=(n,)) for n in (0, 1)])
        folders = [one for one in found.values() if isinstance(one, Path)]
        assert len(folders) == len(set(folders)) == (1 if same else 2)
        if not same:
            assert {fingerprint_of(found[n]) for n in (0, 1)} == {"0", "1"}
            assert {LOCK} >= {path.name for path in experiment.iterdir()} - {
                folder.name for folder in folders
            }
        if before is not None and (not same or before == "0"):
            assert experiment / "1-trunk-x" in folders, "the interrupted run goes on"


def test_of_equal_runs_the_newest_counts(tmp_path: Path) -> None:
    """An older run whose product was removed to save space is not made again for ever."""
    for name, finished in (("1-1-trunk-x", False), ("1-2-trunk-x", True)):
        (tmp_path / name).mkdir()
        mark = {"fingerprint": "abc", "finished": finished, "products": []}
        write_json(tmp_path / name / "fingerprint.json", mark)
    run, lock = claim_run(tmp_path, "1-3-trunk-x", "abc", pattern="*-trunk-*")
    lock.release()
    assert run.name == "1-3-trunk-x"
    assert fingerprint_of(run) == "abc"
    again, lock = claim_run(tmp_path, "1-4-trunk-x", "abc", pattern="*-trunk-*")
    lock.release()
    assert again == run


@pytest.mark.parametrize(("kept", "continued"), [("last", True), ("epoch=0-step=4", False)])
def test_a_run_that_starts_again_does_not_mix_its_checkpoints_with_older_ones(
    kept: str, continued: bool, tmp_path: Path
) -> None:
    (tmp_path / "1-gate-x/checkpoints").mkdir(parents=True)
    mark_started(tmp_path / "1-gate-x", "abc")
    (tmp_path / f"1-gate-x/checkpoints/{kept}.ckpt").touch()
    run, lock = claim_run(tmp_path, "2-gate-x", "abc", pattern="*-gate-*")
    lock.release()
    assert run.name == ("1-gate-x" if continued else "2-gate-x")


def test_a_run_that_would_start_again_is_refused_while_the_first_one_writes(tmp_path: Path) -> None:
    (tmp_path / "1-gate-x/checkpoints").mkdir(parents=True)
    mark_started(tmp_path / "1-gate-x", "abc")
    (tmp_path / "1-gate-x/checkpoints/best.ckpt").touch()

    def taken(folder: Path) -> FolderLock:
        raise ValueError(f"{folder} is being written")

    with pytest.raises(ValueError, match="1-gate-x is being written"):
        claim_run(tmp_path, "2-gate-x", "abc", pattern="*-gate-*", take=taken)


def test_a_folder_in_which_nothing_was_written_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(RUN_FOLDER, raising=False)
    claimed = ClaimedFolder.claim(tmp_path, "1-trunk-x", "abc", "*-trunk-*")
    claimed.abandon()
    assert list(tmp_path.iterdir()) == []
    claimed = ClaimedFolder.claim(tmp_path, "1-trunk-x", "abc", "*-trunk-*")
    (claimed.path / "config.yaml").touch()
    claimed.abandon()
    assert fingerprint_of(claimed.path) == "abc"


TORCHRUN = {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "7", "MASTER_PORT": "29500"}
SLURM = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "x"}


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1", "RANK": "0"}, None),
        (TORCHRUN | {"RANK": "0"}, 0),
        (TORCHRUN | {"RANK": "1", "LOCAL_RANK": "1"}, 1),
        (SLURM | {"SLURM_PROCID": "1"}, 1),
        (SLURM | {"SLURM_PROCID": "1", "SLURM_JOB_NAME": "bash"}, None),
        ({"MASTER_ADDR": "a", "NODE_RANK": "0"}, 0),
        ({"MASTER_ADDR": "a", "NODE_RANK": "1"}, 1),
    ],
)
def test_launchers_are_known_by_what_they_set(
    environment: dict[str, str], rank: int | None
) -> None:
    launch = Launch.of(environment)
    assert (launch and launch.rank) == rank


def test_ranks_of_a_launch_have_one_name_and_launches_have_two() -> None:
    first, second = (Launch.of(SLURM | {"SLURM_PROCID": str(n)}) for n in (0, 1))
    other = Launch.of(SLURM | {"SLURM_PROCID": "0", "SLURM_STEP_ID": "1"})
    names = [launch.name for launch in (first, second, other) if launch is not None]
    assert names[0] == names[1] != names[2]


def test_two_launches_of_torchrun_on_one_machine_have_two_names() -> None:
    def name(folder: str, rank: int, num_local: int = 2) -> str:
        own = {"RANK": str(rank), "LOCAL_WORLD_SIZE": str(num_local)}
        own["TORCHELASTIC_ERROR_FILE"] = f"/tmp/{folder}/attempt_0/{rank}/error.json"
        launch = Launch.of(TORCHRUN | own)
        assert launch is not None
        return launch.name

    assert name("none_a", 0) == name("none_a", 1) != name("none_b", 0)
    assert name("none_a", 0, 1) == name("none_b", 1, 1), "two machines have folders of their own"


def test_the_first_rank_tells_the_others(tmp_path: Path) -> None:
    launch = Launch("name", 1)
    announce(tmp_path, launch, "abc", tmp_path / "1-trunk-x")
    assert announced(tmp_path, launch, "abc") == tmp_path / "1-trunk-x"
    with pytest.raises(ValueError, match="different settings or data"):
        announced(tmp_path, launch, "abd", seconds=0.01)
    announce(tmp_path, launch, "abc", None, "is being written by process 7")
    with pytest.raises(ValueError, match="is being written by process 7"):
        announced(tmp_path, launch, "abc")
    with pytest.raises(ValueError, match="all ranks need the same --runs folder"):
        announced(tmp_path, Launch("other", 1), "abc", seconds=0)
