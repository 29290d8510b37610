"""A model's chat template with a `PromptStyle` written into it, for users without a style.

sentence-transformers hands over a user's turn of text and pictures, and its `prompt` as a system
turn. The template makes of them the turns that `PromptBuilder` makes of a side.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from mmemb.llm import PromptStyle

_TURNS = """\
{%- set asked = messages[0] if messages[0]['role'] == 'system' else none %}
{%- if messages | length > (2 if asked else 1) %}
{{- raise_exception('expected one turn of a user, behind at most one prompt') }}
{%- endif %}
{%- set said = namespace(instruction=DEFAULT, text='', media=[]) %}
{%- if asked %}
{%- set content = asked['content'] %}
{%- set said.instruction = content if content is string else content[0]['text'] %}
{%- endif %}
{%- set content = messages[-1]['content'] %}
{%- if content is string %}
{%- set said.text = content %}
{%- else %}
{%- for part in content %}
{%- if part['type'] == 'text' %}
{%- set said.text = said.text + part['text'] %}
{%- elif part['type'] == 'image' %}
{%- set said.media = said.media + [{'type': 'image'}] %}
{%- else %}
{{- raise_exception('text and pictures can be read, not ' + part['type']) }}
{%- endif %}
{%- endfor %}
{%- endif %}
{%- for token in SPECIAL %}
{%- set spaced = token[0] ~ ' ' ~ token[1:] %}
{%- if asked %}
{%- set said.instruction = said.instruction | replace(token, spaced) %}
{%- endif %}
{%- set said.text = said.text | replace(token, spaced) %}
{%- endfor %}
{%- set system = (said.instruction or SYSTEM) if IN_SYSTEM else SYSTEM %}
{%- set lines = [said.instruction if not IN_SYSTEM else '', said.text] | select | join('\\n') %}
{%- set content = said.media + ([{'type': 'text', 'text': lines}] if lines else []) %}
{%- set messages = [{'role': 'user', 'content': content}] %}
{%- if system %}
{%- set first = {'role': 'system', 'content': [{'type': 'text', 'text': system}]} %}
{%- set messages = [first] + messages %}
{%- endif %}
"""

_END = """\
{%- endset %}
{%- set rendered = rendered | string %}
{%- if rendered.rstrip().endswith('<think>') %}
{%- set rendered = rendered.rstrip()[:-7] %}
{%- endif %}
{{- rendered + SUFFIX }}"""


def sentence_template(template: str, style: PromptStyle, tokens: Iterable[str] = ()) -> str:
    """Returns the template that renders a plain turn as `PromptBuilder` renders a side.

    Args:
        template: the model's own, for turns whose content is a list of parts.
        style: system turn, place of the instruction, suffix; a thought that the template opens is
            closed again, as there. Arguments of the template are not written into it.
        tokens: what no text may spell, as of `special_tokens`.
    """
    constants = {
        "DEFAULT": style.default_instruction,
        "SYSTEM": style.system,
        "IN_SYSTEM": style.instruction_in == "system",
        "SUFFIX": style.suffix,
        "SPECIAL": sorted((t for t in tokens if len(t) > 1), key=lambda t: (-len(t), t)),
    }
    # JSON's strings, booleans and lists are Jinja's.
    lines = [
        f"{{%- set {name} = {json.dumps(value, ensure_ascii=False, allow_nan=False)} %}}\n"
        for name, value in constants.items()
    ]
    return "".join([*lines, _TURNS, "{%- set rendered %}\n", template, _END])
