"""Bytes and messages that are almost right: what a broken disk, an old version or a liar would send.

Everything follows from the generator that is handed in, so that a seed repeats a failure.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from coffre.proto import coffre_pb2 as pb
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

__all__ = ["mangle", "mangled_bytes"]

_TEXTS = [
    "", "a", "..", "a/../b", "\0", "x" * 1024, "x" * 1025, "é" * 600, "🩺", " ", "default", "clinic", "b",
]  # fmt: skip
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.CPPTYPE_ENUM: (0, 99),
}


def mangled_bytes(rng: random.Random, raw: bytes) -> bytes:
    """`raw` with one to three changes of the kinds that damage does: bits, ranges lost, doubled, blanked, put in."""
    data = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(len(data) + 1)
        length = rng.choice([1, 1, 2, 4, 8, 16, 64])
        kind = rng.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 2:
            data[at:at] = rng.randbytes(length)
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            data[at:at] = data[at : at + length]
        elif kind == 6:
            data[at : at + length] = bytes(length)
        else:
            data[at : at + length] = b"\xff" * length
    return bytes(data)


def mangle(rng: random.Random, message: Message) -> None:
    """Change one field somewhere in a message, in place: each message in it has as many chances as it has fields."""
    messages = list(_all(message))
    (chosen,) = rng.choices(messages, [1 + len(one.ListFields()) for one in messages])
    fields: Any = (
        chosen.DESCRIPTOR.fields
    )  # two kinds of sequences, of which the library's types have two opinions
    field: FieldDescriptor = rng.choice(fields)
    present = [descriptor for descriptor, _ in chosen.ListFields()]
    if present and rng.random() < 0.7:
        field = rng.choice(present)
    if field.is_repeated:
        _mangle_repeated(rng, chosen, field)
    elif field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
        setattr(chosen, field.name, _other(rng, field, getattr(chosen, field.name)))
    elif chosen.HasField(field.name):
        chosen.ClearField(field.name)
    else:
        getattr(chosen, field.name).SetInParent()


def _all(message: Message) -> Iterator[Message]:
    """A message, and every one in it."""
    yield message
    for field, value in message.ListFields():
        if field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE or _is_map(field):
            continue
        for inner in value if field.is_repeated else (value,):
            yield from _all(inner)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _mangle_repeated(rng: random.Random, message: Message, field: FieldDescriptor) -> None:
    values: Any = getattr(message, field.name)
    is_message = field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
    if _is_map(field):
        message.ClearField(field.name)
        return
    kind = rng.randrange(8)
    if not values or kind == 0:
        if is_message:
            values.add()
        else:
            values.append(_other(rng, field, field.default_value or _zero(field)))
    elif kind == 1:
        del values[rng.randrange(len(values))]
    elif kind == 2 or is_message:
        values.extend([values[rng.randrange(len(values))]])
    elif kind == 3:
        message.ClearField(field.name)
    else:
        at = rng.randrange(len(values))
        values[at] = _other(rng, field, values[at])


def _zero(field: FieldDescriptor) -> object:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b""
    return "" if field.type == FieldDescriptor.TYPE_STRING else 0


def _other(rng: random.Random, field: FieldDescriptor, value: Any) -> object:
    if field.type == FieldDescriptor.TYPE_BYTES:
        if field.name == "manifest" and value and rng.random() < 0.7:
            return _other_manifest(rng, value)
        return mangled_bytes(rng, value)
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice(_TEXTS)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return not value
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return rng.choice([0.0, -1.0, 1e300, float("inf"), float("nan")])
    low, high = _BITS[field.cpp_type]
    near = rng.choice([0, 1, 2, 5, 255, 256, value - 1, value + 1, value ^ 1, low, high, high >> 1])
    return min(max(near, low), high)


def _other_manifest(rng: random.Random, raw: bytes) -> bytes:
    try:
        manifest = pb.Manifest.FromString(raw)
    except DecodeError:
        return mangled_bytes(rng, raw)
    mangle(rng, manifest)
    return manifest.SerializeToString()
