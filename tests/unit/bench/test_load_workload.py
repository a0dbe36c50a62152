"""What load consists of: shares and sizes as published, the same from the same seed, and bytes that can be checked."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
import zstandard
from coffre.bench.load.content import BLOCK_BYTES, Content, Texture, Verifier, WrongBytes
from coffre.bench.load.plan import (
    HEALTH,
    HEALTH_WITHOUT_ARCHIVES,
    LoadPlan,
    Operation,
    fixed,
    parse_mix,
    parse_size,
)
from coffre.bench.typed_json import decoded, plain
from coffre.cluster.errors import InvalidArgument

PLAN = LoadPlan(
    bucket="bench",
    prefix="load-1",
    seed=1,
    workload="fixed",
    size_bytes=4096,
    texture="random",
    mix="put=1,get=1",
    objects=10,
    range_bytes=100,
    processes=1,
    in_flight=4,
    rate_per_s=None,
    ramp_s=0.0,
    duration_s=10.0,
    count=None,
)


def test_the_health_mix_has_the_published_shares_and_sizes() -> None:
    specs = [HEALTH.spec(5, f"key/{number}") for number in range(40_000)]
    shares = Counter(spec.kind.name for spec in specs)
    expected = {"fhir": 60, "bundle": 20, "document": 5, "mr-ct": 12, "cr": 2.5, "archive": 0.5}
    for name, percent in expected.items():
        assert shares[name] / 400 == pytest.approx(percent, rel=0.2 if percent < 1 else 0.08), name
    bounds = {
        "fhir": (500, 5_000),
        "bundle": (5_000, 120_000),
        "document": (300_000, 5_000_000),
        "cr": (8_000_000, 25_000_000),
        "archive": (64_000_000, 1_000_000_000),
    }
    for name, (low, high) in bounds.items():
        sizes = [spec.size_bytes for spec in specs if spec.kind.name == name]
        assert low <= min(sizes) <= max(sizes) <= high
        middle = sorted(sizes)[len(sizes) // 2]  # log-uniform: the median is the geometric mean of the bounds
        assert middle == pytest.approx((low * high) ** 0.5, rel=0.25), name
    assert {spec.size_bytes for spec in specs if spec.kind.name == "mr-ct"} == {138_000, 531_000}


def test_archives_can_be_left_out() -> None:
    kinds = {HEALTH_WITHOUT_ARCHIVES.spec(5, f"{number}").kind.name for number in range(5_000)}
    assert kinds == {"fhir", "bundle", "document", "mr-ct", "cr"}


def test_what_a_key_is_follows_from_the_seed() -> None:
    specs = [[HEALTH.spec(seed, f"{number}") for number in range(100)] for seed in (1, 1, 2)]
    assert specs[0] == specs[1] != specs[2]


def test_operations_come_by_their_weights() -> None:
    mix = parse_mix("put=20, get=70,range=5,head=3,list=1,delete=1")
    source = random.Random(3)
    drawn = Counter(mix.draw(source) for _ in range(50_000))
    for operation, percent in zip(Operation, (20, 70, 5, 3, 1, 1), strict=True):
        assert drawn[operation] / 500 == pytest.approx(percent, rel=0.15)
    assert str(parse_mix("get=1,put=0")) == "get=1"


@pytest.mark.parametrize(
    "text", ["", "put", "put=", "put=x", "fly=1", "put=1,put=2", "put=-1", "put=nan", "put=0"]
)
def test_a_mix_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_mix(text)


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("4096", 4096), ("4KiB", 4096), ("1.5 MB", 1_500_000), ("1gib", 1 << 30)]
)
def test_sizes_are_read(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "x", "-1", "4 KiBs", "1e3"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_size(text)


@pytest.mark.parametrize(
    ("texture", "low", "high"),
    [
        (Texture.RECORD, 9, 16),
        (Texture.DOCUMENT, 1.15, 1.4),
        (Texture.IMAGE, 1.5, 1.7),
        (Texture.ARCHIVE, 1.4, 1.9),
        (Texture.RANDOM, 0.99, 1.001),
    ],
)
def test_textures_compress_as_they_say(texture: Texture, low: float, high: float) -> None:
    blocks = [Content(1).block("key", texture, number) for number in range(6)]
    compressor = zstandard.ZstdCompressor(level=3)
    ratio = sum(map(len, blocks)) / sum(len(compressor.compress(block)) for block in blocks)
    assert low <= ratio <= high


def test_a_fhir_resource_compresses_about_three_to_one() -> None:
    data = Content(1).whole("key", Texture.RECORD, 3_000)
    assert 2.7 <= len(data) / len(zstandard.ZstdCompressor(level=3).compress(data)) <= 3.8


async def test_content_is_the_same_whole_and_streamed_and_from_any_process() -> None:
    size = 2 * BLOCK_BYTES + 12_345
    streamed = b"".join([piece async for piece in Content(4).stream("k", Texture.IMAGE, size)])
    whole = Content(4).whole("k", Texture.IMAGE, size)
    assert streamed == whole
    assert len(whole) == size
    assert (
        Content(5).whole("k", Texture.IMAGE, 100) != whole[:100] != Content(4).whole("l", Texture.IMAGE, 100)
    )
    assert whole[:1000] != whole[BLOCK_BYTES : BLOCK_BYTES + 1000]


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1])
def test_every_size_verifies(size: int) -> None:
    content = Content(1)
    whole = content.whole("k", Texture.DOCUMENT, size)
    assert len(whole) == size
    verifier = Verifier(content, "k", Texture.DOCUMENT, start=0, length_bytes=size)
    verifier.check(whole)
    verifier.finish()


def test_the_verifier_sees_one_changed_bit_anywhere_and_every_wrong_length() -> None:
    content, start, length = Content(1), BLOCK_BYTES - 5_000, 20_000
    whole = content.whole("k", Texture.RECORD, 2 * BLOCK_BYTES)
    part = whole[start : start + length]

    def verify(data: bytes, piece_bytes: int) -> None:
        verifier = Verifier(content, "k", Texture.RECORD, start=start, length_bytes=length)
        for first in range(0, len(data), piece_bytes):
            verifier.check(data[first : first + piece_bytes])
        verifier.finish()

    for piece_bytes in (1_000, 7_777, length):
        verify(part, piece_bytes)
    for position in (0, 4_999, 5_000, 5_031, length - 1):
        damaged = bytearray(part)
        damaged[position] ^= 1
        with pytest.raises(WrongBytes):
            verify(bytes(damaged), 7_777)
    for wrong in (part[:-1], part + b"x", b""):
        with pytest.raises(WrongBytes):
            verify(wrong, 7_777)
    with pytest.raises(WrongBytes):  # another object of the same size
        verify(content.whole("l", Texture.RECORD, 2 * BLOCK_BYTES)[start : start + length], length)


def test_a_plan_survives_its_journey() -> None:
    assert decoded(LoadPlan, plain(PLAN)) == PLAN


@pytest.mark.parametrize(
    "change",
    [
        {"processes": 0},
        {"processes": 5},
        {"in_flight": 1 << 20},
        {"duration_s": 0.0},
        {"rate_per_s": 0.0},
        {"rate_per_s": float("nan")},
        {"duration_s": float("nan")},
        {"ramp_s": -1.0},
        {"count": 0},
        {"objects": 0},
        {"range_bytes": 0},
        {"mix": "x"},
        {"workload": "x"},
    ],
)
def test_a_plan_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        decoded(LoadPlan, plain(PLAN) | change)


def test_a_plan_of_another_shape_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        decoded(LoadPlan, {"bucket": "bench"})
    with pytest.raises(InvalidArgument):
        decoded(LoadPlan, plain(PLAN) | {"duration_s": "long"})
    with pytest.raises(InvalidArgument):
        decoded(LoadPlan, plain(PLAN) | {"texture": "velvet"})


def test_the_timeline_of_a_long_run_is_bounded() -> None:
    week = replace(PLAN, duration_s=7 * 24 * 3600.0, ramp_s=600.0)
    assert week.end_interval <= 602
    assert PLAN.interval_s == 0.25
    assert (PLAN.ramp_intervals, PLAN.end_interval) == (0, 40)


def test_fixed_objects_have_one_size() -> None:
    workload = fixed(1234, Texture.RANDOM)
    assert {workload.spec(1, f"{number}").size_bytes for number in range(50)} == {1234}
    with pytest.raises(InvalidArgument):
        fixed(-1, Texture.RANDOM)
