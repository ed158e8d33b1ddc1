"""Sound data made unsound: bytes, words of a text, fields of a message, records of a store."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError

from muprover.replay.records import encode, read_records

Mutator = Callable[[bytes, random.Random], bytes]

MAX_BYTES = 1 << 16
INTEGERS = (0, 1, -1, 2, 3, 7, 8, 9, 127, 128, 255, 1000, 1 << 16, (1 << 31) - 1, -(1 << 31))
LARGE = (1 << 31, (1 << 32) - 1, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1)
FLOATS = (0.0, 1.0, -1.0, 0.5, 1e-30, 1e38, float("nan"), float("inf"), float("-inf"))
STRINGS = ("", "a", "tiny", "search", "../..", "/", "\x00", "é" * 40, "x" * 300, "%00", "1")
WORDS = (
    *("null", "true", "{}", "[]", "''", "-1", "0", "1e999", ".nan", "9" * 5000, "2001-99-99"),
    *("[[[[", "{a: b}", "&a [*a]", "<<: *a", "!!python/name:os.system", "\x00", "\ufeff", "é"),
    *("%", ":", "#", "\n", "\t", "- ", "? ", "|", ">", '"', "\\", "/", "..", "/versions/", "NaN"),
)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut, doubled, or put in."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(made) + 1)
        end = min(len(made), at + rng.choice((1, 2, 4, 16, 200)))
        kind = rng.randrange(5)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del made[at:end]
        elif kind == 2:
            made[at:at] = made[at:end] * rng.choice((1, 2, 50))
        elif kind == 3:
            made[at:end] = rng.randbytes(end - at)
        else:
            del made[at:]
    return bytes(made[:MAX_BYTES])


def mutate_text(data: bytes, rng: random.Random, words: Sequence[str] = WORDS) -> bytes:
    """Words of the text replaced, doubled, or left out."""
    tokens = re.findall(r"\w+|\s+|.", data.decode("utf-8", "replace"), re.DOTALL)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(tokens) + 1)
        end = min(len(tokens), at + rng.choice((1, 1, 3, 20)))
        kind = rng.randrange(4)
        if kind == 0:
            tokens[at:end] = [rng.choice(words)]
        elif kind == 1:
            del tokens[at:end]
        elif kind == 2:
            tokens[at:at] = tokens[at:end] * rng.choice((1, 1, 30))
        else:
            other = rng.randrange(len(tokens) + 1)
            tokens[at:end] = tokens[other : other + rng.choice((1, 2, 8))]
    return "".join(tokens).encode()[:MAX_BYTES]


def text(words: Sequence[str] = ()) -> Mutator:
    """Of texts in which also these words mean something."""
    return lambda data, rng: mutate_text(data, rng, (*WORDS, *words))


def message(kind: Any) -> Mutator:
    """Of serialized messages of this class."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        try:
            made = kind.FromString(data)
        except DecodeError:
            return mutate_bytes(data, rng)
        for _ in range(rng.choice((1, 1, 2, 4))):
            change(made, rng)
        return bytes(made.SerializeToString())[: 4 * MAX_BYTES]

    return mutate


def several(mutate: Mutator) -> Mutator:
    """Of `join`ed data: one of them mutated, doubled or left out."""

    def mutate_one(data: bytes, rng: random.Random) -> bytes:
        parts = split(data) or [b""]
        at = rng.randrange(len(parts))
        kind = rng.randrange(8)
        if kind == 0:
            del parts[at]
        elif kind == 1 and len(parts) < 50:
            parts.insert(rng.randrange(len(parts) + 1), parts[at])
        else:
            parts[at] = mutate(parts[at], rng)
        return join(parts)

    return mutate_one


def records(kinds: dict[int, Any]) -> Mutator:
    """Of a store's or a backup's records: a message in one is another, with its checksum right."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        found = list(read_records(io.BytesIO(data), Path("memory"), len(data)))
        if not found:
            return mutate_bytes(data, rng)
        parts = [(kind, body) for kind, body, _ in found]
        at = rng.randrange(len(parts))
        kind, body = parts[at]
        if kind in kinds:
            body = message(kinds[kind])(body, rng)
        parts[at] = (rng.choice((kind, kind, kind, *kinds, 9)), body)
        if not rng.randrange(8):
            parts.insert(0, parts.pop(at))
        return b"".join(encode(*part) for part in parts)

    return mutate


def split(data: bytes) -> list[bytes]:
    """Several messages that are kept in one file: each after its length, of three bytes."""
    parts = []
    while len(data) >= 3:
        size = int.from_bytes(data[:3], "little")
        parts.append(data[3 : 3 + size])
        data = data[3 + size :]
    return parts


def join(parts: Sequence[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(3, "little") + part for part in parts)


def change(made: Any, rng: random.Random) -> None:
    """Changes one thing somewhere in a message."""
    fields = made.DESCRIPTOR.fields
    if not fields:
        return
    present = [field for field, _ in made.ListFields()]
    field = rng.choice(present if present and rng.randrange(4) else fields)
    if not rng.randrange(8):
        made.ClearField(field.name)
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        _change_map(getattr(made, field.name), field, rng)
    elif field.is_repeated:
        _change_list(getattr(made, field.name), field, rng)
    elif field.message_type is not None:
        child = getattr(made, field.name)
        child.SetInParent()
        change(child, rng)
    else:
        _assign(made, field, getattr(made, field.name), rng)


def _change_map(entries: Any, field: FieldDescriptor, rng: random.Random) -> None:
    keys = list(entries)
    value = field.message_type.fields_by_name["value"]
    key = rng.choice(keys) if keys and rng.randrange(4) else rng.choice(STRINGS)
    if key in keys and not rng.randrange(6):
        del entries[key]
    elif value.message_type is not None:
        change(entries[key], rng)
    else:
        old = entries[key] if key in keys else value.default_value
        entries[key] = _scalar(value, old, rng)


def _change_list(items: Any, field: FieldDescriptor, rng: random.Random) -> None:
    kind = rng.randrange(4)
    if kind == 0 and items:
        del items[rng.randrange(len(items))]
    elif field.message_type is not None:
        if kind == 1 or not items:
            items.add()
        elif kind == 2 and len(items) < 100:
            items.add().CopyFrom(rng.choice(items))
        change(rng.choice(items), rng)
    elif kind == 1 or not items:
        new = _scalar(field, field.default_value or _zero(field), rng)
        items.extend([new] * rng.choice((1, 1, 2, 300)))
    else:
        at = rng.randrange(len(items))
        items[at] = _scalar(field, items[at], rng)


def _assign(made: Any, field: FieldDescriptor, old: Any, rng: random.Random) -> None:
    setattr(made, field.name, _scalar(field, old, rng))


def _zero(field: FieldDescriptor) -> Any:
    kinds = {FieldDescriptor.CPPTYPE_STRING: b"" if _is_bytes(field) else ""}
    return kinds.get(field.cpp_type, 0)


def _scalar(field: FieldDescriptor, old: Any, rng: random.Random) -> Any:
    """Another value of a field."""
    kind = field.cpp_type
    if _is_bytes(field):
        return mutate_bytes(old, rng)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return rng.choice(STRINGS) if rng.randrange(3) else (old + rng.choice(STRINGS))[:5000]
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return not old
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice(FLOATS)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 99, -1))
    low, high = _LIMITS[kind]
    value = int(old) + rng.choice((-1, 1)) if rng.randrange(2) else rng.choice(INTEGERS + LARGE)
    return min(high, max(low, value))


def _is_bytes(field: FieldDescriptor) -> bool:
    return bool(field.type == FieldDescriptor.TYPE_BYTES)


_LIMITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
