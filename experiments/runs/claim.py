"""The folder of a run: continued or made by the first rank alone, and known to all of a launch.

Ranks that Lightning starts learn it from an environment variable. Those that `torchrun` or `srun`
start are all there at once, and need it before a process group exists, since they load its
checkpoint: the first rank writes its name into a file named by the launch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from callbacks.checkpoint_io import must_start_again
from callbacks.run_record import fingerprint_of, is_unfinished, mark_started
from experiments.runs.folders import new_folder
from mmemb.records.schema import Schema, read_json
from mmemb.storage.json_files import write_json
from mmemb.storage.locks import LOCK, FolderLock, locked
from mmemb.storage.requeue import INTERACTIVE
from mmemb.storage.run_folder import RunFolder

RUN_FOLDER = "MMEMB_RUN_FOLDER"
"""Set by the first process, so that the ranks it launches write into the same folder."""

LAUNCH_SECONDS = 600.0
"""Longest time in which a rank waits for the first one to name the run's folder."""

_LAUNCH_KEYS = (
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT"),
)
_STARTED = time.time()


@final
@dataclass(frozen=True, slots=True)
class Launch:
    """A launch whose processes all start at once: its name, and this process's rank in it."""

    name: str
    rank: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Launch | None:
        """Reads the variables of `torchrun`, `srun`, or a process started by hand on each node;
        None for a process that is alone, or starts its other ranks itself."""

        if int(environment.get("WORLD_SIZE", 1)) > 1 and "RANK" in environment:
            rank = int(environment["RANK"])
        elif int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environment:
            if environment.get("SLURM_JOB_NAME") in INTERACTIVE:
                return None
            rank = int(environment["SLURM_PROCID"])

        # A later node is never the first rank; a process with MASTER_ADDR on node 0 is.
        elif int(environment.get("NODE_RANK", environment.get("GROUP_RANK", 0))) > 0:
            rank = 1
        elif "MASTER_ADDR" in environment:
            rank = 0
        else:
            return None

        named = "\n".join(f"{key}={environment.get(key)}" for key in _LAUNCH_KEYS)

        # On one machine `torchrun` may call every launch the same, so that what an earlier one has
        # left would be taken for an answer; but it makes a new folder for the errors of its ranks.
        on_one_machine = environment.get("LOCAL_WORLD_SIZE") == environment.get("WORLD_SIZE")
        errors = environment.get("TORCHELASTIC_ERROR_FILE")
        if on_one_machine and errors:
            # FOLDER/attempt_0/RANK/error.json
            named += f"\n{Path(errors).parent.parent.parent}"
        return cls(hashlib.sha256(named.encode()).hexdigest()[:16], rank)


@final
@dataclass(frozen=True, slots=True)
class ClaimedFolder:
    """The folder in which a run writes.

    Attributes:
        path: of the folder.
        lock: of the folder, on the rank that writes there.
        announcement: the file that names the folder to the other ranks of the launch; None where
            they need none.
        vanishes: True if this process removes the folder at its end.
    """

    path: Path = Path()
    lock: FolderLock | None = None
    announcement: Path | None = None
    vanishes: bool = False

    @classmethod
    def temporary(cls) -> ClaimedFolder:
        """Makes the folder of a run that keeps nothing."""

        if folder := _of_launcher():
            return cls(folder)

        os.environ[RUN_FOLDER] = tempfile.mkdtemp(prefix="mmemb-fast-dev-run-")
        return cls(Path(os.environ[RUN_FOLDER]), vanishes=True)

    @classmethod
    def claim(
        cls, experiment: Path, name: str, fingerprint: str, pattern: str | None = None
    ) -> ClaimedFolder:
        """Returns the folder of this process's run: that of the first rank, or claimed here.

        See `claim_run` for the arguments.

        Raises:
            ValueError: the run that would be continued is being written by another process, or the
                first rank has written no folder.
        """
        if folder := _of_launcher():
            return cls(folder)

        launch = Launch.of(os.environ)
        if launch is not None and launch.rank > 0:
            claimed = cls(announced(experiment, launch, fingerprint))
        else:
            claimed = cls._claim_first(experiment, name, fingerprint, pattern, launch)

        # Ranks that Lightning starts from this process inherit the variable.
        os.environ[RUN_FOLDER] = str(claimed.path)
        return claimed

    @classmethod
    def _claim_first(
        cls,
        experiment: Path,
        name: str,
        fingerprint: str,
        pattern: str | None,
        launch: Launch | None,
    ) -> ClaimedFolder:
        try:
            run, lock = claim_run(experiment, name, fingerprint, pattern=pattern)

        # The other ranks would wait for their whole time limit, so they are told of the failure.
        except ValueError as error:
            if launch is not None:
                announce(experiment, launch, fingerprint, None, str(error))
            raise

        path = None if launch is None else announce(experiment, launch, fingerprint, run)
        return cls(run, lock, path)

    def discard(self) -> None:
        """Removes the folder of a run that was refused before its first batch, so that no list
        shows it; one that has saved a state stays."""
        if self.lock is not None and not RunFolder(self.path).checkpoints.exists():
            for entry in self.path.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                elif entry.name != LOCK:
                    entry.unlink(missing_ok=True)
        self.abandon()

    def abandon(self) -> None:
        """Removes a new folder in which nothing has been written, after a mistake of the user."""
        if self.lock is None:
            return

        mark = RunFolder(self.path).mark
        if {path.name for path in self.path.iterdir()} <= {mark.name, LOCK}:
            mark.unlink(missing_ok=True)

        self.lock.release()
        with contextlib.suppress(OSError):  # of a run that goes on it is not empty
            self.path.rmdir()


def claim_run(
    experiment: Path,
    name: str,
    fingerprint: str,
    *,
    pattern: str | None = None,
    take: Callable[[Path], FolderLock] = FolderLock.take,
    starting: Callable[[Path], AbstractContextManager[None]] = locked,
) -> tuple[Path, FolderLock]:
    """Returns the folder of an interrupted run of this fingerprint, else a new one; and its lock.

    Starters take turns, so that of two that are equal the second finds the first one's folder.

    Args:
        experiment: holds the runs.
        name: of a new run's folder; a number is put behind one that is taken.
        fingerprint: of the run's settings and inputs.
        pattern: of the names of runs that may be continued; None = a new one in any case.
        take: locks a folder, or raises ValueError.
        starting: a context in which no other starter of the experiment is.

    Raises:
        ValueError: the run that would be continued is being written by another process.
    """
    with starting(experiment):
        runs = sorted(experiment.glob(pattern), key=_age) if pattern else []
        equal = [run for run in runs if fingerprint_of(run) == fingerprint]
        # Of equal runs the newest one counts: an older one that is broken was made again by it.
        if equal and is_unfinished(equal[-1], fingerprint):
            lock = take(equal[-1])
            if not must_start_again(RunFolder(equal[-1]).checkpoints):
                return equal[-1], lock
            lock.release()

        run = new_folder(experiment, name)
        lock = take(run)
        mark_started(run, fingerprint)
        return run, lock


@final
class _AnnouncementJson(Schema):
    """The message of a launch's first rank to the others."""

    fingerprint: str
    run: str | None
    failure: str


def announce(
    experiment: Path, launch: Launch, fingerprint: str, run: Path | None, failure: str = ""
) -> Path:
    """Writes the run's folder, or why there is none, for the other ranks of a launch.

    Returns:
        The file, to be removed when all ranks have read it.
    """
    path = _rendezvous(experiment, launch)

    name = None if run is None else run.name
    write_json(path, {"fingerprint": fingerprint, "run": name, "failure": failure})
    return path


def announced(
    experiment: Path, launch: Launch, fingerprint: str, seconds: float = LAUNCH_SECONDS
) -> Path:
    """Waits for the folder that the first rank of the launch names, and returns it.

    Raises:
        ValueError: the first rank failed, runs with other settings, or wrote nothing in time.
    """
    path = _rendezvous(experiment, launch)

    end = time.monotonic() + seconds
    other = None
    while time.monotonic() < end:
        # What an earlier launch of the same name has left is no answer to this one.
        if path.is_file() and path.stat().st_mtime > _STARTED - LAUNCH_SECONDS:
            data = read_json(path, _AnnouncementJson)
            if data.failure or data.run is None:
                raise ValueError(data.failure or f"{path} names no folder: start the launch again.")

            # Other settings may be left from an earlier launch, so the wait goes on until the
            # time is over.
            if data.fingerprint == fingerprint:
                return experiment / data.run
            other = data.fingerprint

        time.sleep(0.1)

    if other is not None:
        raise ValueError(
            f"Ranks run with different settings or data (fingerprints {other} and {fingerprint}): "
            "start all of them with the same command, on the same files."
        )
    raise ValueError(
        f"Rank {launch.rank} has waited {seconds:.0f} s for {path}, in which the first rank names "
        "the run's folder: all ranks need the same --runs folder, on a shared file system."
    )


def _of_launcher() -> Path | None:
    """Returns the folder of the process that started this one as another rank; None for a first
    rank, also of a second run in one process."""
    folder = os.environ.get(RUN_FOLDER)

    # `torchrun` sets RANK in all its processes; those of Lightning have LOCAL_RANK without it.
    is_other = int(os.environ.get("LOCAL_RANK", 0)) > 0 and "RANK" not in os.environ
    return Path(folder) if folder and is_other else None


def _rendezvous(experiment: Path, launch: Launch) -> Path:
    return experiment / f".launch-{launch.name}.json"


def _age(run: Path) -> tuple[list[str], int, str]:
    """Sorts names by the time in front; of one second by the number behind, `-10` after `-9`."""
    return run.name.split("-")[:2], len(run.name), run.name
