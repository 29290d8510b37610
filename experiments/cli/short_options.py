"""Short options such as `--lr` and `--batch_size`, as flags or top-level keys.

Each sets a long key in front of the parser, so that configuration, fingerprint and every later step
are those of the long key. It overrides the long key of earlier files. A long key in the same file,
in a later one or among the flags is refused, since it cannot be known which of the two is meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from experiments.cli.settings_sources import ABSENT, SettingsSource, last_value
from mmemb.storage.json_files import canonical_json

SHORT_OPTIONS: Mapping[str, str] = {
    "lr": "model.optimizer.lr",
    "batch_size": "data.batch_size",
    "steps": "trainer.max_steps",
    "devices": "trainer.devices",
    "pretrained": "model.backbone.pretrained",
}
"""Short key -> long key."""

EPOCH = "trainer.limit_train_batches"
INTERVAL = "trainer.val_check_interval"
GROUP_SIZE = "data.group_size"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ImpliedSetting:
    """A long key that a short option sets, or that is adapted to it.

    Attributes:
        key: the long key.
        value: of it, as on the command line.
        label: of the file or flag that it follows from.
        reason: a line for the user; empty if the option itself says enough.
    """

    key: str
    value: str
    label: str
    reason: str = ""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Last:
    """The last file or flag that gives a key a value: its label, and its place among the layers."""

    place: int
    value: Any
    label: str
    text: str

    @property
    def size(self) -> int | None:
        """The value, if it is a positive whole number."""
        whole = isinstance(self.value, int) and not isinstance(self.value, bool)
        return self.value if whole and self.value > 0 else None


_Layers = Sequence[Sequence[SettingsSource]]
"""Every file is a layer; all flags together are the last one, wherever they stand."""


def implied_settings(sources: Sequence[SettingsSource]) -> list[ImpliedSetting]:
    """Returns what the short options of a command line set, and what goes with it.

    Args:
        sources: the files and flags of the command line.

    Raises:
        ValueError: a short and a long key are given together.
    """
    layers = [[source] for source in sources if not source.by_flag]
    layers.append([source for source in sources if source.by_flag])

    implied = []
    for short, key in SHORT_OPTIONS.items():
        chosen = _last(layers, short)
        if chosen is None:
            continue

        if other := _last(layers[chosen.place :], key):
            raise ValueError(
                f"{chosen.label} and {other.label} give one setting two values: {short} is short "
                f"for {key}, and overrides it only in the files before. Keep one of them."
            )
        implied.append(ImpliedSetting(key=key, value=chosen.text, label=chosen.label))
        if short == "steps":
            implied += _epoch(layers, chosen)

    return implied + _fitting_group(layers)


def with_implied(arguments: Sequence[str], implied: Sequence[ImpliedSetting]) -> list[str]:
    """Appends the long keys to the arguments, and sets the short ones to null."""
    keys = {setting.key for setting in implied}
    nulls = [f"--{short}=null" for short, key in SHORT_OPTIONS.items() if key in keys]
    return [*arguments, *(f"--{s.key}={s.value}" for s in implied), *nulls]


def _last(layers: _Layers, key: str) -> _Last | None:
    """Returns the last file or flag that sets a key; null counts as not set."""
    for place, layer in reversed(list(enumerate(layers))):
        for source in reversed(layer):
            value = source.value(key)
            if value in (ABSENT, None):
                continue
            text = source.text if source.text is not None else _text(value)
            return _Last(place=place, value=value, label=source.label_of(key), text=text)
    return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value)


def _epoch(layers: _Layers, steps: _Last) -> list[ImpliedSetting]:
    """Returns the length of an epoch and of a validation interval that go with other steps.

    Where a file makes its `max_steps` one epoch, so does the short option: with the old epoch a
    shorter fit would end without a validation.
    """
    before = [source for layer in layers[: steps.place] for source in layer]
    beside = [source for layer in layers[steps.place :] for source in layer]

    epoch, interval = last_value(before, EPOCH), last_value(before, INTERVAL)
    if steps.size is None or not isinstance(epoch, int):
        return []
    if epoch != last_value(before, SHORT_OPTIONS["steps"]):
        return []

    values = {EPOCH: steps.size}
    if isinstance(interval, int):
        values[INTERVAL] = min(steps.size, interval)

    # A length that is given beside the short option stays as it is.
    return [
        ImpliedSetting(key=key, value=str(value), label=steps.label)
        for key, value in values.items()
        if last_value(beside, key) is ABSENT
    ]


def _fitting_group(layers: _Layers) -> list[ImpliedSetting]:
    """Returns the group size that fits a batch size which a later file or flag has set."""
    batches = [_last(layers, "batch_size"), _last(layers, "data.batch_size")]
    groups = [_last(layers, GROUP_SIZE)]

    # The recipes link the group size to a key of their own.
    if groups[0] is not None and groups[0].value == "${group_size}":
        groups.append(_last(layers, "group_size"))

    batch = max((b for b in batches if b is not None), key=lambda b: b.place, default=None)
    group = groups[-1]
    if batch is None or group is None or batch.size is None or group.size is None:
        return []

    # A group size that was set beside the batch size, or later, is checked by the data module.
    if batch.place <= max(g.place for g in groups if g is not None):
        return []

    size = fitting_group_size(batch.size, group.size)
    if size in (None, group.size):
        return []
    reason = (
        f"{GROUP_SIZE} is {size} instead of {group.size}, the nearest that fits a batch size of "
        f"{batch.size}. Set {GROUP_SIZE} to choose another."
    )
    return [ImpliedSetting(key=GROUP_SIZE, value=str(size), label=batch.label, reason=reason)]


def fitting_group_size(batch_size: int, group_size: int) -> int | None:
    """Returns the largest group size up to `group_size` that fills a batch; None = no proper one.

    >>> fitting_group_size(8, 32), fitting_group_size(48, 32), fitting_group_size(31, 16)
    (8, 24, None)
    """
    for size in range(min(batch_size, group_size), 1, -1):
        if batch_size % size == 0:
            return size
    return 1 if 1 in (batch_size, group_size) else None
