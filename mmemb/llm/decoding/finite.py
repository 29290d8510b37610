"""A check against NaN and infinity: a broken checkpoint must neither judge nor write."""

from __future__ import annotations

from torch import Tensor


def check_finite(values: Tensor, model: object, about: str) -> None:
    """Refuses NaN and infinities.

    Args:
        values: scores or log-probabilities, of any shape.
        model: of transformers, or its folder or hub id.
        about: the question that the model was asked.

    Raises:
        ValueError: some value is not finite.
    """
    if not bool(values.isfinite().all()):
        name = getattr(model, "name_or_path", model)
        raise ValueError(
            f"The model {name} gives NaN or infinity for {about}: its weights are broken, or its "
            "dtype is too narrow for them. Set dtype: float32 or bfloat16, or take another "
            "checkpoint."
        )
