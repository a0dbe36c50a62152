"""The public surface of the room is its `__all__`."""

from __future__ import annotations

import coffre.cluster
from coffre.cluster import errors


def test_everything_exported_is_there() -> None:
    assert len(set(coffre.cluster.__all__)) == len(coffre.cluster.__all__)
    for name in coffre.cluster.__all__:
        assert hasattr(coffre.cluster, name)
    assert set(errors.__all__) <= set(coffre.cluster.__all__)
