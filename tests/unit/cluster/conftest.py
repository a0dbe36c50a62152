"""One authority and its members, made once: keys cost time, and nobody changes them."""

from __future__ import annotations

import pytest
from coffre.cluster.identity import NodeAttributes
from coffre.cluster.testing import Members, make_members
from hypothesis import settings

settings.register_profile("coffre", derandomize=True, deadline=None)
settings.load_profile("coffre")


def _members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    return make_members(
        tmp_path_factory.mktemp("members") / "pki",
        "0123456789abcdef",
        [NodeAttributes("n1", "s1", "paris", "ovh", "FR"), NodeAttributes("n2", "s2", "lille", "scw", "FR")],
        ["hospital"],
        ["alice"],
    )


@pytest.fixture(scope="session")
def members(tmp_path_factory: pytest.TempPathFactory) -> Members:
    return _members(tmp_path_factory)


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Members:
    """Of another authority, which claims the same subject and cluster id."""
    return _members(tmp_path_factory)
