"""Changes of bytes, texts and JSON values that readers trip over. Knows no reader."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

STRANGE_TEXTS = (
    "", " ", "\t\n", "\0", "\x1b[31m", "\u200b", "\ufeff", "\u2028", "\x85", "e\u0301", "\u00e9",
    "\ud83d", "\ude00\ud83d", "\U0001f600", "\u202eabc", "\u0130", "\ufdfa", "a" * 3000,
    "../../escape", "/etc/passwd", "..", "CON", "a/b\\c", "%2e%2e", "x\ny", "file:///x",
    "[SEP]", "[CLS]", "<end_of_text>", "<|im_end|>", "</think>", "<answer>", "<think>" * 300,
    "NaN", "null", "1e309", "0", "-1", "True", "{text.__class__}", "{0}", "{", "%s", "$HOME",
    "http://127.0.0.1:9/", "=1+1", '"', "'", ",", "|",
)  # fmt: skip

NUMBERS = (
    0, -1, 1, 2, 7, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1,
    2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, float("nan"),
    float("inf"), -float("inf"),
)  # fmt: skip

_WORDS = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\n",
    b"\r\n",
    b'"',
    b"{",
    b"[",
    b"\\",
    b"\xed\xa0\xbd",
)


def mutate_bytes(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """One change of a file.

    Args:
        data: the file.
        random: what is changed.
        others: files of which a piece may be taken.
    """
    at = random.randrange(len(data) + 1)
    end = min(at + random.choice((1, 1, 2, 4, 16, 512, len(data))), len(data))
    match random.randrange(9):
        case 0 if at < len(data):
            return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data[:at] + data[end:]
        case 3:
            return data[:end] + data[at:end] * random.choice((1, 2, 40)) + data[end:]
        case 4:
            number = random.choice((0, 1, 255, 2**15, 2**31 - 1, 2**32 - 1, random.getrandbits(32)))
            packed = struct.pack(random.choice("<>") + "I", number)[: random.choice((1, 2, 4))]
            return data[:at] + packed + data[at + len(packed) :]
        case 5 if others:
            other = random.choice(others)
            start = random.randrange(len(other) + 1)
            return (
                data[:at] + other[start : start + random.choice((4, 64, len(other)))] + data[end:]
            )
        case 6:
            text = random.choice(STRANGE_TEXTS).encode(errors="surrogatepass")
            return data[:at] + text + data[end:]
        case 7:
            return _other_number(data, random)
        case _:
            return data[:at] + random.choice(_WORDS) * random.choice((1, 1, 3, 2000)) + data[at:]


def _other_number(data: bytes, random: Random) -> bytes:
    """A run of digits becomes a number at a limit."""
    digits = [n for n, byte in enumerate(data) if 48 <= byte <= 57]
    if not digits:
        return data
    start = end = random.choice(digits)
    while end < len(data) and 48 <= data[end] <= 57:
        end += 1
    return data[:start] + str(random.choice(NUMBERS)).encode() + data[end:]


def mutate_text(text: str, random: Random) -> str:
    """One change of a text; it may be no valid Unicode afterwards."""
    at = random.randrange(len(text) + 1)
    end = min(at + random.choice((0, 1, 5, len(text))), len(text))
    return text[:at] + random.choice((*STRANGE_TEXTS, text)) + text[end:]


def mutate_value(value: Any, random: Random) -> Any:
    """One change somewhere in a JSON value: another type, a limit, a key more or less."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        match random.randrange(8):
            case 0:
                return {name: inner for name, inner in value.items() if name != key}
            case 1:
                return {**value, random.choice((*STRANGE_TEXTS, "more")): random.choice(NUMBERS)}
            case 2:
                names = {
                    name: random.choice(STRANGE_TEXTS) if name == key else name for name in value
                }
                return {names[name]: inner for name, inner in value.items()}
            case _:
                return {**value, key: mutate_value(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.85:
        at = random.randrange(len(value))
        match random.randrange(6):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value[:at] + [value[at]] * 2 + value[at:]
            case _:
                return [*value[:at], mutate_value(value[at], random), *value[at + 1 :]]
    if isinstance(value, str) and random.random() < 0.5:
        return mutate_text(value, random)
    return random.choice(_OTHERS)(value, random)


_OTHERS: tuple[Callable[[Any, Random], Any], ...] = (
    lambda value, random: random.choice(NUMBERS),
    lambda value, random: random.choice(STRANGE_TEXTS),
    lambda value, random: random.choice((None, True, False, [], {}, [[]], [None], {"": None})),
    lambda value, random: [value],
    lambda value, random: {"a": value},
    lambda value, random: str(value),
    lambda value, random: -value if isinstance(value, int | float) else value,
)


def mutate_json(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """One change of a JSON file: mostly of a value, sometimes of its bytes."""
    if random.random() < 0.15:
        return mutate_bytes(data, random, others)
    if random.random() < 0.02:
        return data.replace(b"[", b"[" * random.choice((2, 500, 100_000)), 1)
    try:
        value = mutate_value(json.loads(data), random)
        text = json.dumps(value, ensure_ascii=random.random() < 0.5)
    except (ValueError, RecursionError):
        return mutate_bytes(data, random, others)
    if random.random() < 0.03:  # a key twice
        text = text.replace("{", '{"text": "twice", ', 1)
    return text.encode(errors="surrogatepass")
