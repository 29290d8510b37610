"""Texts and figures for the loggers that take them; the others get numbers only.

TensorBoard, Weights & Biases and MLflow take both. So does every logger whose `experiment` has the
`add_text` and `add_figure` of TensorBoard's writer. To be called on the first rank alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEXT, FIGURE = "add_text", "add_figure"
"""The methods of TensorBoard's writer."""


def log_text(loggers: Iterable[Any], name: str, text: str, step: int) -> None:
    """Hands a text (Markdown) to those loggers that take one.

    Args:
        loggers: of the trainer.
        name: e.g. `val/tasks`.
        text: Markdown.
        step: the global step.
    """
    for logger in loggers:
        if (write := _writer(logger, TEXT)) is not None:
            write(name, text, step)


def log_figure(loggers: Iterable[Any], name: str, draw: Callable[[], Figure], step: int) -> None:
    """Hands a figure to those loggers that take one; it is drawn once, if any logger does.

    Args:
        loggers: of the trainer.
        name: e.g. `val/best_candidates`.
        draw: makes the figure of matplotlib.
        step: the global step.
    """
    writers = [w for logger in loggers if (w := _writer(logger, FIGURE)) is not None]
    if not writers:
        return

    figure = draw()
    for write in writers:
        write(name, figure, step)


def _writer(logger: Any, method: str) -> Callable[[str, Any, int], None] | None:
    """The function that writes with one logger, or None."""
    kind = next((t.__name__ for t in type(logger).__mro__ if t.__name__ in _OTHERS), None)
    if kind is not None:
        return _OTHERS[kind](logger, method)
    return getattr(logger.experiment, method, None)


def _weights_and_biases(logger: Any, method: str) -> Callable[[str, Any, int], None]:
    if method == TEXT:
        return lambda name, text, step: logger.log_text(name, ["text"], [[text]], step=step)
    return lambda name, figure, step: logger.log_image(name, [figure], step=step)


def _mlflow(logger: Any, method: str) -> Callable[[str, Any, int], None]:
    client, run = logger.experiment, logger.run_id
    if method == TEXT:
        return lambda name, text, step: client.log_text(run, text, f"{name}-{step}.md")
    return lambda name, figure, step: client.log_figure(run, figure, f"{name}-{step}.png")


# By name, since this package imports neither Lightning nor these libraries.
_OTHERS = {"WandbLogger": _weights_and_biases, "MLFlowLogger": _mlflow}
