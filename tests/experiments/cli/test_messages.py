"""What other libraries say that no user can act on."""

from __future__ import annotations

import logging

import pytest

from experiments.cli.messages import quieten

NOISE = {
    "lightning.fabric.utilities.seed": "Seed set to 0",
    "transformers.tokenization_utils_base": (
        "Token indices sequence length is longer than the specified maximum sequence length for "
        "this model (4036 > 2048). Running this sequence through the model will result in errors"
    ),
    "huggingface_hub.utils._http": "Retrying in 1s [Retry 1/5].",
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_is_dropped_and_the_rest_stays(name: str, caplog: pytest.LogCaptureFixture) -> None:
    quieten()
    with caplog.at_level(logging.INFO, logger=name):
        logging.getLogger(name).warning(NOISE[name])
        logging.getLogger(name).warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]


def test_filters_do_not_pile_up() -> None:
    for _ in range(3):
        quieten()
    assert len(logging.getLogger("lightning.fabric.utilities.seed").filters) == 1


def test_the_name_of_a_library_that_speaks_is_that_of_its_logger() -> None:
    """A release that moves the tokenizer's warning would bring it back in silence."""
    from lightning.fabric.utilities import seed
    from transformers import tokenization_utils_base

    assert seed.log.name == "lightning.fabric.utilities.seed"
    assert tokenization_utils_base.logger.name == "transformers.tokenization_utils_base"
