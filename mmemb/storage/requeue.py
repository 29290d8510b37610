"""Puts the SLURM job of an interrupted command back into the queue, where the same command goes on.

It knows nothing of what the command does: whoever calls has saved what shall be kept.
"""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
from collections.abc import Mapping

from mmemb.records.text import printable

INTERACTIVE = ("bash", "interactive")
"""Names of jobs in which a person works; Lightning starts no ranks in them."""

SCONTROL_SECONDS = 10.0
"""How long the two calls may take: less than `GRACE_SECONDS` of `mmemb.storage.signals`, after
which the process is killed."""

_RANKS = ("SLURM_PROCID", "RANK", "LOCAL_RANK", "NODE_RANK")


def requeue(signum: int, environment: Mapping[str, str]) -> None:
    """Requeues the job of this process once, on its first rank; prints one line on standard error.

    Nothing happens outside of `srun`, in an interactive job, after Ctrl-C, and on other ranks. A
    job that SLURM does not allow to be requeued, or that somebody has cancelled, is left alone.

    Args:
        signum: of the signal that ended the command.
        environment: the variables of this process.
    """
    # Only a task of `srun` is the work of its job; SLURM_JOB_ID alone may be that of a notebook.
    is_task = "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" in environment
    if not is_task or environment.get("SLURM_JOB_NAME") in INTERACTIVE:
        return
    if signum == signal.SIGINT or any(int(environment.get(name, 0)) > 0 for name in _RANKS):
        return
    _requeue_job(job_id(environment))


def job_id(environment: Mapping[str, str]) -> str:
    """Returns the name of the job; of an array that of one task, as its plain number means all.

    >>> job_id({"SLURM_JOB_ID": "8"})
    '8'
    >>> job_id({"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"})
    '7_1'
    """
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]


def may_requeue(job: str) -> bool:
    """Tells from the text of `scontrol show job` whether the job may and should be requeued.

    A job that was cancelled is COMPLETING or CANCELLED when its processes receive SIGTERM, and one
    whose time is over is so for the reason TimeLimit.

    >>> may_requeue("JobState=RUNNING Reason=None Requeue=1 Restarts=0")
    True
    >>> may_requeue("JobState=COMPLETING Reason=None Requeue=1 Comment=JobState=RUNNING")
    False
    """
    # Whole fields: a user's words stand in others, such as Comment and Command.
    fields = set(job.split())
    return "Requeue=1" in fields and not fields.isdisjoint({"JobState=RUNNING", "Reason=TimeLimit"})


# Once in a process: the fit asks for it behind its last step, and the command at its end.
@functools.cache
def _requeue_job(job: str) -> None:
    try:
        if not may_requeue(_scontrol("show", "job", job)):
            outcome = "is not requeued: SLURM says Requeue=0, or that it was cancelled"
        else:
            _scontrol("requeue", job)
            outcome = "is requeued, and goes on with the same command"

    # The signal ends the command in any case: what hinders a requeue is told, and no more.
    except FileNotFoundError:
        outcome = "is not requeued: there is no `scontrol` on the path"
    except subprocess.TimeoutExpired:
        outcome = f"is not requeued: `scontrol` gave no answer in {SCONTROL_SECONDS / 2:.0f} s"
    except subprocess.CalledProcessError as error:
        reason = printable(" ".join(error.stderr.split())) or f"status {error.returncode}"
        outcome = f"is not requeued: {reason:.300}"
    except OSError as error:
        outcome = f"is not requeued: `scontrol` cannot be run ({error.strerror})"

    print(f"SLURM job {job} {outcome}.", file=sys.stderr)


def _scontrol(*arguments: str) -> str:
    """Runs `scontrol`, and returns what it prints."""
    return subprocess.run(
        ["scontrol", *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
        timeout=SCONTROL_SECONDS / 2,
    ).stdout
