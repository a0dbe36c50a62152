"""Every codec test runs on each tier of this machine, and on the zfec fallback."""

from __future__ import annotations

import pytest
from coffre.codec import Tier, available_tiers


@pytest.fixture(params=available_tiers(), ids=lambda tier: tier.value)
def tier(request: pytest.FixtureRequest) -> Tier:
    chosen = request.param
    assert isinstance(chosen, Tier)
    return chosen
