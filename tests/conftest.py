"""What several test files share, made once: the tiny data set, and experiments run on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import write_tiny

# Forked ranks would hang in a pool of threads that the fork has lost, and tiny tensors gain nothing.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of `tests/tiny.py`, with tiny models. Read only."""
    from tests.tiny_models import write_tiny_models

    return write_tiny_models(write_tiny(tmp_path_factory.mktemp("tiny_root")))
