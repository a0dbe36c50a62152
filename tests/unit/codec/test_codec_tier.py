"""The choice of a tier at import, and what an installation without the kernel does."""

from __future__ import annotations

import os
import subprocess
import sys

import coffre.codec
import pytest
from coffre.codec import Codec, Tier, active_tier, available_tiers

REPORT = """
import coffre.codec as c
print(c.active_tier().value, c.Codec(2, 1).tier.value, hex(c.crc32c(b"123456789")))
"""
# An import hook that makes the kernel as absent as it is where no compiler was found.
WITHOUT_KERNEL = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "coffre.codec._kernel":
            raise ModuleNotFoundError("No module named 'coffre.codec._kernel'")
sys.meta_path.insert(0, Absent())
"""


def run(code: str, tier: str | None, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "COFFRE_CODEC_TIER"}
    if tier is not None:
        environment["COFFRE_CODEC_TIER"] = tier
    return subprocess.run(
        [sys.executable, *flags, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_the_environment_forces_each_tier(tier: Tier) -> None:
    done = run(REPORT, tier.value, "-W", "error")
    assert done.stdout.split() == [tier.value, tier.value, "0xe3069283"], done.stderr


def test_the_fastest_tier_is_the_default() -> None:
    assert run(REPORT, None, "-W", "error").stdout.split()[0] == available_tiers()[0].value
    assert run(REPORT, "", "-W", "error").stdout.split()[0] == available_tiers()[0].value


@pytest.mark.parametrize(
    "name", ["avx1024", "neon" if Tier.NEON not in available_tiers() else "avx2", "ZFEC"]
)
def test_a_tier_that_cannot_run_is_one_clear_error(name: str) -> None:
    done = run(REPORT, name)
    assert done.returncode == 1
    names = ", ".join(tier.value for tier in available_tiers())
    last = done.stderr.strip().splitlines()[-1]
    assert (
        last == f"ValueError: COFFRE_CODEC_TIER={name} names no codec tier available here; available: {names}"
    )


def test_without_the_kernel_zfec_serves_with_one_warning() -> None:
    done = run(WITHOUT_KERNEL + REPORT, None)
    assert done.stdout.split() == ["zfec", "zfec", "0xe3069283"]
    assert done.stderr.count("CodecFallbackWarning: coffre.codec runs on zfec, which is much slower") == 1


def test_zfec_by_choice_gives_no_warning() -> None:
    done = run(WITHOUT_KERNEL + REPORT, "zfec", "-W", "error")
    assert (done.stdout.split()[0], done.stderr) == ("zfec", "")


def test_without_the_kernel_its_tiers_are_an_error() -> None:
    done = run(WITHOUT_KERNEL + REPORT, "scalar")
    assert done.stderr.strip().endswith("names no codec tier available here; available: zfec")


def test_a_codec_refuses_a_tier_of_another_machine() -> None:
    missing = [tier for tier in Tier if tier not in available_tiers()]
    assert missing, "no CPU has both NEON and AVX2"
    for tier in missing:
        with pytest.raises(ValueError, match="is not available here; available: "):
            Codec(4, 2, tier=tier)


def test_order_and_active_tier() -> None:
    order = [*Tier]
    assert sorted(available_tiers(), key=order.index) == list(available_tiers())
    assert available_tiers()[-1] is Tier.ZFEC
    assert active_tier() in available_tiers()


def test_exported_names() -> None:
    assert len(set(coffre.codec.__all__)) == len(coffre.codec.__all__)
    assert all(hasattr(coffre.codec, name) for name in coffre.codec.__all__)
