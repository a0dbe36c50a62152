"""Wrong arguments: one clear error, the same on the kernel and the fallback, and never a byte written."""

from __future__ import annotations

import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from coffre.codec import Codec, Tier

if TYPE_CHECKING:
    from typing_extensions import Buffer

SIZE = 40
Call = Callable[[Codec], object]


def inputs(count: int = 4, size: int = SIZE) -> list[bytes]:
    return [bytes([index]) * size for index in range(count)]


def outputs(count: int = 2, size: int = SIZE) -> list[bytearray]:
    return [bytearray(size) for _ in range(count)]


def untyped(value: object) -> Any:
    """What a caller without a type checker may pass."""
    return value


def shared(first: int, second: int) -> list[memoryview]:
    """Two outputs in one buffer, at these offsets."""
    room = memoryview(bytearray(4 * SIZE))
    return [room[first : first + SIZE], room[second : second + SIZE]]


def overlapping_input(code: Codec) -> object:
    room = memoryview(bytearray(2 * SIZE))
    return code.encode_into([*inputs(3), room[:SIZE]], [bytearray(SIZE), room[SIZE - 1 : 2 * SIZE - 1]])


def overlapping_segment(code: Codec) -> object:
    room = memoryview(bytearray(6 * SIZE))
    return code.encode_segment(room[: 4 * SIZE], room[4 * SIZE - 1 : 6 * SIZE - 1])


def closed(code: Codec) -> object:
    view = memoryview(bytearray(SIZE))
    view.release()
    return code.encode_into(inputs(), [view, bytearray(SIZE)])


ENCODE_ERRORS: dict[str, tuple[Call, type[Exception], str]] = {
    "short input": (
        lambda c: c.encode_into([*inputs(3), b"x"], outputs()),
        ValueError,
        "input shard 3 has 1 bytes but input shard 0 has 40",
    ),
    "long output": (
        lambda c: c.encode_into(inputs(), [bytearray(SIZE), bytearray(SIZE + 1)]),
        ValueError,
        "output shard 5 has 41 bytes but input shard 0 has 40",
    ),
    "few inputs": (
        lambda c: c.encode_into(inputs(3), outputs()),
        ValueError,
        "4 input shards are needed, not 3",
    ),
    "many inputs": (
        lambda c: c.encode_into(inputs(9), outputs()),
        ValueError,
        "4 input shards are needed, not 9",
    ),
    "no outputs": (lambda c: c.encode_into(inputs(), []), ValueError, "2 output shards are needed, not 0"),
    "no buffer": (
        lambda c: c.encode_into(untyped([*inputs(3), 7]), outputs()),
        TypeError,
        "input shard 3 must be a buffer, not int",
    ),
    "text": (
        lambda c: c.encode_into(untyped(["a", "b", "c", "d"]), outputs()),
        TypeError,
        "input shard 0 must be a buffer, not str",
    ),
    "no sequence": (
        lambda c: c.encode_into(untyped(None), outputs()),
        TypeError,
        "the input shards must be a sequence of buffers, not NoneType",
    ),
    "bytes as sequence": (
        lambda c: c.encode_into(untyped(b"abcd"), outputs()),
        TypeError,
        "input shard 0 must be a buffer, not int",
    ),
    "read-only output": (
        lambda c: c.encode_into(inputs(), untyped([bytearray(SIZE), bytes(SIZE)])),
        ValueError,
        "output shard 5 is read-only",
    ),
    "strided input": (
        lambda c: c.encode_into([memoryview(bytes(2 * SIZE))[::2], *inputs(3)], outputs()),
        ValueError,
        "input shard 0 is not a contiguous buffer, or is closed",
    ),
    "strided output": (
        lambda c: c.encode_into(inputs(), [bytearray(SIZE), memoryview(bytearray(2 * SIZE))[::2]]),
        ValueError,
        "output shard 5 is not a contiguous buffer, or is closed",
    ),
    "closed output": (closed, ValueError, "output shard 4 is not a contiguous buffer, or is closed"),
    "one output twice": (
        lambda c: c.encode_into(inputs(), outputs(1) * 2),
        ValueError,
        "output shard 5 overlaps output shard 4",
    ),
    "outputs share a byte": (
        lambda c: c.encode_into(inputs(), shared(0, SIZE - 1)),
        ValueError,
        "output shard 5 overlaps output shard 4",
    ),
    "outputs share a byte, backwards": (
        lambda c: c.encode_into(inputs(), shared(SIZE - 1, 0)),
        ValueError,
        "output shard 5 overlaps output shard 4",
    ),
    "output over input": (overlapping_input, ValueError, "output shard 5 overlaps input shard 3"),
    "ragged segment": (
        lambda c: c.encode_segment(bytes(4 * SIZE + 1), bytearray(2 * SIZE)),
        ValueError,
        "segment has 161 bytes, which is not a multiple of 4",
    ),
    "short parity": (
        lambda c: c.encode_segment(bytes(4 * SIZE), bytearray(2 * SIZE - 1)),
        ValueError,
        "parity has 79 bytes; 2 cells of 40 bytes are needed",
    ),
    "long parity": (
        lambda c: c.encode_segment(bytes(4 * SIZE), bytearray(4 * SIZE)),
        ValueError,
        "parity has 160 bytes; 2 cells of 40 bytes are needed",
    ),
    "parity for nothing": (
        lambda c: c.encode_segment(b"", bytearray(2)),
        ValueError,
        "parity has 2 bytes; 2 cells of 0 bytes are needed",
    ),
    "parity over segment": (overlapping_segment, ValueError, "parity overlaps segment"),
    "read-only parity": (
        lambda c: c.encode_segment(bytes(4 * SIZE), bytes(2 * SIZE)),
        ValueError,
        "parity is read-only",
    ),
    "segment is text": (
        lambda c: c.encode_segment(untyped("text"), bytearray(2)),
        TypeError,
        "segment must be a buffer, not str",
    ),
    "too few shards": (
        lambda c: c.reconstruct_into(dict(enumerate(inputs(3))), {3: bytearray(SIZE)}),
        ValueError,
        "4 shards are needed to reconstruct, but 3 were given",
    ),
    "wanted index too high": (
        lambda c: c.reconstruct_into(dict(enumerate(inputs())), {6: bytearray(SIZE)}),
        ValueError,
        "shard index 6 is out of range; there are 6 shards",
    ),
    "negative index": (
        lambda c: c.reconstruct_into({-1: bytes(SIZE), **dict(enumerate(inputs()))}, {}),
        ValueError,
        "shard index -1 is out of range; there are 6 shards",
    ),
    "reconstruct lengths": (
        lambda c: c.reconstruct_into(dict(enumerate([*inputs(3), b"x"])), {5: bytearray(SIZE)}),
        ValueError,
        "input shard 3 has 1 bytes but input shard 0 has 40",
    ),
    "reconstruct read-only": (
        lambda c: c.reconstruct_into(dict(enumerate(inputs())), {5: bytes(SIZE)}),
        ValueError,
        "output shard 5 is read-only",
    ),
}


@pytest.mark.parametrize("case", ENCODE_ERRORS)
def test_wrong_buffers(tier: Tier, case: str) -> None:
    call, kind, text = ENCODE_ERRORS[case]
    with pytest.raises(kind) as caught:
        call(Codec(4, 2, tier=tier))
    assert type(caught.value) is kind
    assert str(caught.value) == text


def test_an_error_writes_nothing(tier: Tier) -> None:
    parity = outputs()
    with pytest.raises(ValueError, match="input shard 3 has 39 bytes"):
        Codec(4, 2, tier=tier).encode_into([*inputs(3), bytes(SIZE - 1)], parity)
    with pytest.raises(ValueError, match="output shard 5 overlaps output shard 4"):
        Codec(4, 2, tier=tier).encode_into(inputs(), parity[:1] * 2)
    assert parity == outputs()


def assert_released(*buffers: bytearray) -> None:
    for buffer in buffers:
        buffer.append(0)  # a BufferError while anything holds a view


def test_every_call_releases_every_buffer(tier: Tier) -> None:
    code = Codec(4, 2, tier=tier)
    data, parity = [bytearray(SIZE) for _ in range(4)], outputs()
    code.encode_into(data, parity)
    assert_released(*data, *parity)
    data[3].append(0)
    with pytest.raises(ValueError, match="input shard 3 has 42 bytes"):
        code.encode_into(data, parity)
    assert_released(*data, *parity)
    segment, cells = bytearray(4 * SIZE), bytearray(2 * SIZE)
    code.encode_segment(segment, cells)
    assert_released(segment, cells)
    with pytest.raises(ValueError, match="which is not a multiple of 4"):
        code.encode_segment(segment, cells)
    assert_released(segment, cells)
    shards, wanted = {index: bytearray(SIZE) for index in range(4)}, {5: bytearray(SIZE)}
    code.reconstruct_into(shards, wanted)
    assert_released(*shards.values(), *wanted.values())


@pytest.mark.parametrize(
    ("k", "m", "text"),
    [
        (0, 2, "k must be at least 1, not 0"),
        (-4, 2, "k must be at least 1, not -4"),
        (4, -1, "m must be at least 0, not -1"),
        (200, 57, "k + m must be at most 256, not 257"),
        (10**30, 1, f"k + m must be at most 256, not {10**30 + 1}"),
    ],
)
def test_impossible_schemes(tier: Tier, k: int, m: int, text: str) -> None:
    with pytest.raises(ValueError, match="must be at") as caught:
        Codec(k, m, tier=tier)
    assert str(caught.value) == text


@pytest.mark.parametrize(("k", "m"), [("4", 2), (4.0, 2), (None, 2), (4, b"2")])
def test_schemes_must_be_whole_numbers(k: object, m: object) -> None:
    with pytest.raises(TypeError):
        Codec(untyped(k), untyped(m))


def test_wider_items_are_taken_as_bytes(tier: Tier) -> None:
    words = array.array("I", range(10))
    data: list[Buffer] = [words, *inputs(3, words.itemsize * 10)]
    flat = [words.tobytes(), *inputs(3, words.itemsize * 10)]
    first, second = outputs(2), outputs(2)
    code = Codec(4, 2, tier=tier)
    assert code.encode_into(data, first) == code.encode_into(flat, second)
    assert first == second


class EditsItsList:
    """A list whose length lies: opened once as the sequence, it has been emptied by then."""

    def __init__(self, items: list[bytes]) -> None:
        self._items = items

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> bytes:
        return self._items.pop()


def test_a_sequence_that_changes_while_it_is_read(tier: Tier) -> None:
    with pytest.raises(ValueError, match="4 input shards are needed, not 3"):
        Codec(4, 2, tier=tier).encode_into(untyped(EditsItsList(inputs(3))), outputs())


def test_the_kernel_checks_its_own_arguments() -> None:
    kernel = pytest.importorskip("coffre.codec._kernel", exc_type=ImportError)
    for sources, targets, text in [
        (b"", b"\x01", "at least one source shard is needed"),
        (b"\x01\x01", b"", "source shard 1 is given twice"),
        (b"\x01", b"\x02\x02", "target shard 2 is given twice"),
        (bytes(257), b"", "there are at most 256 source shards, not 257"),
        (b"\x01", bytes(257), "there are at most 256 target shards, not 257"),
    ]:
        with pytest.raises(ValueError, match=text):
            kernel.Transform(sources, targets)
    with pytest.raises(ValueError, match="the codec tier 'avx1024' is not available"):
        kernel.Transform(b"\x00", b"\x01", "avx1024")
    with pytest.raises(ValueError, match="is not available"):
        kernel.set_active_tier("avx1024")
    with pytest.raises(TypeError):
        kernel.set_active_tier(7)
    for method in (
        kernel.Transform(b"\x00", b"\x01").apply,
        kernel.Transform(b"\x00", b"\x01").apply_segment,
    ):
        with pytest.raises(TypeError, match="takes 2 or 3 arguments"):
            method()
        with pytest.raises(TypeError, match="takes 2 or 3 arguments"):
            method([], [], True, None)
