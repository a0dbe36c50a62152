"""Names: any key of 1 to 1,024 bytes of UTF-8, and partitions that never move."""

from __future__ import annotations

from collections import Counter

import pytest
from coffre.cluster.errors import InvalidArgument
from coffre.cluster.names import ObjectName, partition_of
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    "key", ["..", "../../etc/passwd", "/", "\0", "a\0b", "é" * 512, "x" * 1024, "🏥/🩺", " ", "\n", "‮"]
)
def test_any_text_is_a_key(key: str) -> None:
    assert ObjectName("t", "b", key).key == key


@pytest.mark.parametrize("key", ["", "x" * 1025, "é" * 513, "\ud800", "a\udfffb"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(InvalidArgument, match="key"):
        ObjectName("t", "b", key)


@pytest.mark.parametrize("label", ["", "A", "a/b", "..", ".", "-a", "a-", "a_b", "a" * 64, "a\n", "é", "a\0"])
def test_what_is_no_tenant_or_bucket(label: str) -> None:
    with pytest.raises(InvalidArgument, match="tenant"):
        ObjectName(label, "b", "k")
    with pytest.raises(InvalidArgument, match="bucket"):
        ObjectName("t", label, "k")


@given(
    *(st.tuples(st.sampled_from(["a", "b-c"]), st.sampled_from(["a", "c"]), st.text(min_size=1, max_size=5)),)
    * 2
)
def test_contexts_are_unambiguous(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert (ObjectName(*one).context() == ObjectName(*other).context()) == (one == other)


def test_partitions_are_frozen() -> None:
    """A member that hashes otherwise looks for records where they are not."""
    assert partition_of(ObjectName("hospital", "scans", "2024/é.dcm"), 4096) == 1738


def test_partitions_are_even() -> None:
    counts = Counter(partition_of(ObjectName("t", "b", str(i)), 16) for i in range(16_000))
    assert set(counts) == set(range(16))
    assert all(850 < count < 1150 for count in counts.values())
