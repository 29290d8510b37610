"""What several test files share, made once: the tiny data set, and experiments run on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")  # on a busy machine a slow example is no fault

if TYPE_CHECKING:
    from tests.fixtures.tiny_experiment import Experiment


def pytest_collection(session: pytest.Session) -> None:
    """Forked ranks would hang in a pool of threads that the fork lost, and tiny tensors gain
    nothing. Not when this file is read: who only hands out tests to others needs no torch."""
    if not session.config.getoption("numprocesses", None):
        import torch

        torch.set_num_threads(1)


def pytest_itemcollected(item: pytest.Item) -> None:
    """With several processes (`pytest -n 2 --dist loadgroup`) one of them makes an experiment, and
    runs all tests that look at it."""
    if item.path.name in ("test_prepare_full.py", "test_gate_state.py"):
        item.add_marker(pytest.mark.xdist_group(item.path.name))  # what they look at is made once
    if item.path.name in ("test_arrows.py", "test_file_names.py", "test_reading.py"):
        item.add_marker(pytest.mark.xdist_group("source"))  # its trees are made once
    if item.path.parent.name == "plan":
        item.add_marker(pytest.mark.xdist_group("plan"))  # what plans without numbers loads slowly
    for name in {"clip_experiment", "joint_experiment"} & {*getattr(item, "fixturenames", ())}:
        item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    """No test ends a machine, and what one process has written another one reads: `fsync`, 5 ms
    each, changes nothing that a test could see."""
    with patch.object(os, "fsync", lambda handle: None):
        yield


@pytest.fixture(scope="session", autouse=True)
def no_threads_of_autograd() -> None:
    """Tensors without numbers pretend that there is a GPU, and a first backward pass after them
    starts threads that forked ranks would miss. A first one before them starts none."""
    import torch

    torch.zeros(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of `tests/fixtures/tiny_data.py`, with tiny models. Read only."""
    from tests.fixtures.tiny_data import write_tiny
    from tests.fixtures.tiny_models import write_tiny_models

    return write_tiny_models(write_tiny(tmp_path_factory.mktemp("tiny_root")))


@pytest.fixture(scope="session")
def clip_experiment(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """All stages of the pocket's YAML files with clip_tiny, run once, and the report. Whoever
    breaks something in it repairs it."""
    return _experiment(tiny_root, tmp_path_factory.mktemp("clip_experiment"), "clip_tiny")


@pytest.fixture(scope="session")
def joint_experiment(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The same with the joint encoder and cached features, as the files say; no report."""
    folder = tmp_path_factory.mktemp("joint_experiment")
    return _experiment(tiny_root, folder, "joint", "--until", "gate-test")


def _experiment(root: Path, folder: Path, backbone: str, *arguments: str) -> Experiment:
    from tests.fixtures.tiny_experiment import STAGES, run_pipeline, write_experiment

    experiment = write_experiment(folder, root, backbone)
    # `--from` the first stage: nobody asks 13 times whether something is done.
    assert run_pipeline(experiment, "--from", "features", *arguments) == list(STAGES)
    return experiment
