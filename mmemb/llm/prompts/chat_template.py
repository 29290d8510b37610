"""A model's chat template: it comes with the model, and transformers runs it in a sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmemb.records.text import quote


def conversation_text(
    reader: Any, messages: Sequence[Mapping[str, Any]], generates: bool = True, **arguments: Any
) -> str:
    """Renders a conversation as text by the template of a model.

    Args:
        reader: a tokenizer or processor of transformers.
        messages: the turns.
        generates: whether the turn of the model is opened.
        arguments: for the template.

    Raises:
        ValueError: there is no template, or it does not read or fails; names the model.
    """
    try:
        return reader.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generates, **arguments
        )
    except Exception as error:  # a template fails as any program does
        tokenizer = getattr(reader, "tokenizer", reader)
        model = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise ValueError(
            f"The chat template of {model} cannot be used; it says "
            f'"{type(error).__name__}: {quote(error)}". '
            "Repair its chat_template.jinja, or the `chat_template` of its tokenizer_config.json."
        ) from None
