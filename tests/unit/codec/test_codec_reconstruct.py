"""Decoding and repair: any wanted shards from any k of them."""

from __future__ import annotations

import itertools
import random

import pytest
import zfec
from coffre.codec import Codec, Tier
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def all_shards(k: int, m: int, size: int, seed: int = 0) -> list[bytes]:
    source = random.Random(seed)
    return list(zfec.Encoder(k, k + m).encode(tuple(source.randbytes(size) for _ in range(k))))


def test_every_k_of_4_plus_2_gives_every_shard(tier: Tier) -> None:
    shards = all_shards(4, 2, 333)
    code = Codec(4, 2, tier=tier)
    for survivors in itertools.combinations(range(6), 4):
        wanted = {index: bytearray(333) for index in range(6)}
        code.reconstruct_into({index: shards[index] for index in survivors}, wanted)
        assert [bytes(wanted[index]) for index in range(6)] == shards, survivors


@settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_any_wanted_from_any_survivors(tier: Tier, data: st.DataObject) -> None:
    k, m = data.draw(st.integers(1, 20)), data.draw(st.integers(0, 12))
    size = data.draw(st.sampled_from((0, 1, 31, 64, 129, 500)))
    shards = all_shards(k, m, size) if size else [b""] * (k + m)
    order = data.draw(st.permutations(range(k + m)))
    given_count = data.draw(st.integers(k, k + m))
    targets = data.draw(st.sets(st.integers(0, k + m - 1)))
    wanted = {index: bytearray(b"\xff" * size) for index in targets}
    Codec(k, m, tier=tier).reconstruct_into({index: shards[index] for index in order[:given_count]}, wanted)
    assert {index: bytes(buffer) for index, buffer in wanted.items()} == {
        index: shards[index] for index in targets
    }


@pytest.mark.parametrize(("k", "m"), [(128, 128), (200, 56), (2, 254)])
def test_long_schemes(tier: Tier, k: int, m: int) -> None:
    shards = all_shards(k, m, 65)
    order = random.Random(k).sample(range(k + m), k + m)
    lost = {index: bytearray(65) for index in order[k : k + 9]}
    Codec(k, m, tier=tier).reconstruct_into({index: shards[index] for index in order[:k]}, lost)
    assert {index: bytes(buffer) for index, buffer in lost.items()} == {
        index: shards[index] for index in lost
    }


def test_data_shards_are_preferred_and_the_rest_ignored(tier: Tier) -> None:
    shards = all_shards(4, 2, 50)
    shards[5] = b"a corrupt parity shard that must not be read"
    wanted = {4: bytearray(50)}
    Codec(4, 2, tier=tier).reconstruct_into(dict(reversed(list(enumerate(shards)))), wanted)
    assert bytes(wanted[4]) == shards[4]


def test_stock_zfec_recovers_what_the_kernel_wrote(tier: Tier) -> None:
    data = [random.Random(i).randbytes(777) for i in range(10)]
    parity = [bytearray(777) for _ in range(4)]
    Codec(10, 4, tier=tier).encode_into(data, parity, checks=False)
    kept = (13, 1, 2, 12, 4, 5, 11, 7, 8, 10)
    blocks = tuple(bytes([*data, *parity][index]) for index in kept)
    assert zfec.Decoder(10, 14).decode(blocks, kept) == data


def test_nothing_wanted_writes_nothing(tier: Tier) -> None:
    shards = all_shards(3, 1, 20)
    wanted: dict[int, bytearray] = {}
    Codec(3, 1, tier=tier).reconstruct_into(dict(enumerate(shards)), wanted)
    assert wanted == {}
