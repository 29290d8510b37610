"""The job of an interrupted command goes back into SLURM's queue, once, and only if it may."""

from __future__ import annotations

import signal
from itertools import count
from pathlib import Path

import pytest

from mmemb.storage.requeue import requeue
from tests.fixtures.slurm import RUNNING, Slurm

JOBS = map(str, count(8000))
"""Each test has a job of its own, since a process asks once for each."""


def ask(
    monkeypatch: pytest.MonkeyPatch,
    slurm: Slurm,
    signum: int = signal.SIGTERM,
    times: int = 1,
    **more: str,
) -> str:
    """Requeues as a task of a new job; returns its number."""
    job = next(JOBS)
    variables = slurm.variables(job=job) | more
    monkeypatch.setenv("PATH", variables["PATH"])
    for _ in range(times):
        requeue(signum, {name: value for name, value in variables.items() if value})
    return job


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_the_first_task_requeues_its_job_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    signum: int,
) -> None:
    slurm = Slurm.write(tmp_path)
    job = ask(monkeypatch, slurm, signum, times=2)
    assert slurm.calls == [f"show job {job}", f"requeue {job}"]
    assert capsys.readouterr().err == (
        f"SLURM job {job} is requeued, and goes on with the same command.\n"
    )


@pytest.mark.parametrize(
    "more",
    [
        {"SLURM_PROCID": "1"},
        {"RANK": "1"},  # of torchrun, in a task of srun
        {"LOCAL_RANK": "1"},  # launched by the first one
        {"SLURM_STEP_ID": ""},  # the terminal of a notebook that runs in a job
        {"SLURM_JOB_NAME": "interactive"},
    ],
)
def test_nobody_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, str]
) -> None:
    slurm = Slurm.write(tmp_path)
    ask(monkeypatch, slurm, **more)
    assert slurm.calls == []


def test_ctrl_c_is_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = Slurm.write(tmp_path)
    ask(monkeypatch, slurm, signal.SIGINT)
    assert slurm.calls == []


@pytest.mark.parametrize(
    ("job", "requeued"),
    [
        (RUNNING.replace("Requeue=1", "Requeue=0"), False),  # sbatch --no-requeue
        (RUNNING.replace("RUNNING", "COMPLETING"), False),  # scancel
        (RUNNING.replace("RUNNING Reason=None", "COMPLETING Reason=TimeLimit"), True),
    ],
)
def test_a_job_that_may_not_or_was_cancelled_is_left_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    job: str,
    requeued: bool,
) -> None:
    slurm = Slurm.write(tmp_path, job)
    ask(monkeypatch, slurm)
    assert any(call.startswith("requeue") for call in slurm.calls) == requeued
    assert ("is not requeued: SLURM says" in capsys.readouterr().err) != requeued


def test_a_task_of_an_array_is_requeued_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Slurm.write(tmp_path)
    ask(monkeypatch, slurm, SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="3")
    assert slurm.calls == ["show job 70_3", "requeue 70_3"]


def test_what_scontrol_answers_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm = Slurm.write(tmp_path)
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "Access denied" >&2\nexit 1\n')
    job = ask(monkeypatch, slurm)
    assert capsys.readouterr().err == f"SLURM job {job} is not requeued: Access denied.\n"

    (tmp_path / "scontrol").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    requeue(signal.SIGTERM, slurm.variables(job=next(JOBS)))
    assert "there is no `scontrol` on the path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"", "`scontrol` cannot be run"),  # nobody may execute it
        (b"\x7fELF", "`scontrol` cannot be run"),  # of another machine
        (b"#!/bin/sh\nprintf '\\377\\033[31m' >&2; exit 1\n", r"\ufffd\x1b[31m"),
        (b"#!/bin/sh\nkill -9 $$\n", "status -9"),
    ],
)
def test_a_scontrol_that_is_broken_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: bytes,
    words: str,
) -> None:
    slurm = Slurm.write(tmp_path)
    (tmp_path / "scontrol").write_bytes(program)
    (tmp_path / "scontrol").chmod(0o755 if program else 0o644)
    monkeypatch.setenv("PATH", str(tmp_path))

    job = next(JOBS)
    requeue(signal.SIGTERM, slurm.variables(job=job) | {"PATH": str(tmp_path)})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"SLURM job {job} is not requeued: ")
    assert words in line
    assert line.isprintable()


def test_words_of_a_user_are_no_state_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`scontrol` prints the comment and the command line of a job among its fields."""
    slurm = Slurm.write(
        tmp_path, "JobState=CANCELLED Requeue=1 Comment=JobState=RUNNING Command=/a/Requeue=1"
    )
    ask(monkeypatch, slurm)
    assert "is not requeued: SLURM says" in capsys.readouterr().err
