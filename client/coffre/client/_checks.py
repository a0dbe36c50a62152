"""Checks at the door: arguments of a wrong type or out of bounds are `InvalidArgument`, before anything is done."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from coffre.cluster.errors import InvalidArgument
from coffre.cluster.names import ObjectName, check_bucket
from coffre.cluster.versions import Stamp

__all__ = [
    "bucket_of",
    "call_of",
    "check_listing",
    "check_metadata",
    "check_parts",
    "check_range",
    "count_of",
    "flag_of",
    "items_of",
    "name_of",
    "seconds_of",
    "text_of",
    "version_of",
]

METADATA_BYTES_MAX = 8 << 10


def text_of(what: str, value: object) -> str:
    """Text that has an encoding in UTF-8."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{what} is text, not {kind_of(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} must be valid Unicode; this one has a lone surrogate") from None
    return value


def kind_of(value: object) -> str:
    """How a message calls a value of a wrong type."""
    return "None" if value is None else f"of type {type(value).__name__}"


def name_of(tenant: str, bucket: object, key: object) -> ObjectName:
    """The name of an object."""
    return ObjectName(tenant, text_of("a bucket", bucket), text_of("a key", key))


def bucket_of(bucket: object) -> str:
    """The name of a bucket."""
    name = text_of("a bucket", bucket)
    check_bucket(name)
    return name


def version_of(version: object) -> str | None:
    """A version id, or None for the newest one."""
    if version is None:
        return None
    text = text_of("a version", version)
    Stamp.parse(text)
    return text


def flag_of(what: str, value: object) -> bool:
    """Yes or no."""
    if not isinstance(value, bool):
        raise InvalidArgument(f"{what} is True or False, not {kind_of(value)}")
    return value


def count_of(what: str, value: object, least: int, most: int | None = None) -> int:
    """A whole number within bounds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(f"{what} is a whole number, not {kind_of(value)}")
    if value < least or (most is not None and value > most):
        raise InvalidArgument(
            f"{what} is {least} to {most}" if most is not None else f"{what} is {least} or more"
        )
    return value


def seconds_of(what: str, value: object, least: float = 0.0, *, or_least: bool = False) -> float | None:
    """A number above `least` (`or_least`: or that itself), None for no limit."""
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidArgument(f"{what} is a number, not {kind_of(value)}")
    if not math.isfinite(value) or value < least or (value == least and not or_least):
        raise InvalidArgument(
            f"{what} is {least:g} or more" if or_least else f"{what} is more than {least:g}"
        )
    return float(value)


def check_range(start: object, length: object) -> None:
    """Both ends of a range of bytes."""
    for value in (start, 0 if length is None else length):
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidArgument(f"start and length are whole numbers, not {kind_of(value)}")
        if value < 0:
            raise InvalidArgument("a range starts at 0 or later and has no negative length")


def check_listing(bucket: object, prefix: object, delimiter: object, limit: object, timeout: object) -> None:
    """What a list of a bucket is asked with."""
    bucket_of(bucket)
    text_of("a prefix", prefix)
    text_of("a delimiter", delimiter)
    count_of("a page", limit, 1, 1000)
    seconds_of("timeout", timeout)


def check_parts(keys: object, options: object) -> None:
    """What a client is made of by its user."""
    if not (callable(getattr(keys, "wrap", None)) and callable(getattr(keys, "unwrap", None))):
        raise InvalidArgument(f"keys have wrap and unwrap (KeyProvider); this is {kind_of(keys)}")
    if options is not None and not hasattr(options, "compress_level"):
        raise InvalidArgument(f"options are ClientOptions, not {kind_of(options)}")


def call_of(what: str, value: object) -> None:
    """Something to be called, or None."""
    if value is not None and not callable(value):
        raise InvalidArgument(f"{what} is a function, not {kind_of(value)}")


def items_of(what: str, value: object) -> None:
    """Several things; one text is none of them, although it can be iterated."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | bytearray | Mapping):
        raise InvalidArgument(f"{what}, not {kind_of(value)}")


def check_metadata(content_type: object, metadata: object) -> None:
    """Content type and user metadata: text that has 8 KiB at most together."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidArgument(f"metadata is a mapping of text to text, not {kind_of(metadata)}")
    pairs = dict(metadata or {})
    texts = [text_of("content_type", content_type)]
    texts += [text_of("metadata", text) for text in (*pairs, *pairs.values())]
    size_bytes = sum(len(text.encode()) for text in texts)
    if size_bytes > METADATA_BYTES_MAX:
        raise InvalidArgument(
            f"content type and metadata have {size_bytes} bytes; at most {METADATA_BYTES_MAX} fit"
        )
