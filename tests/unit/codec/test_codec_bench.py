"""The codec benchmark: compares like with like, and says what to install when it cannot."""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import random

import pytest
import zfec
from click.testing import CliRunner
from coffre.bench import codec as bench
from coffre.codec import Tier, active_tier


def test_ratios_come_from_the_clock_and_the_parity_from_the_code() -> None:
    pytest.importorskip("pyeclib")
    if active_tier() is Tier.ZFEC:
        pytest.skip("checksums of the fallback take minutes on a benchmark's data")
    ticks = itertools.count()
    one = bench.measure_encode(4, 2, 1 << 20, with_zfec=True, clock=lambda: float(next(ticks)))
    source = random.Random(bench.SEED)
    data = tuple(source.randbytes(1 << 20) for _ in range(4))
    assert one.parity_sha256 == hashlib.sha256(b"".join(zfec.Encoder(4, 6).encode(data, (4, 5)))).hexdigest()
    # Every turn takes one tick: 16 calls of the kernel and ISA-L, one call of zfec.
    assert one.vs_zfec is not None
    assert (one.vs_isal.ratio, one.with_checks_vs_isal.ratio, one.vs_zfec.ratio) == (1, 1, 16)


def test_without_isal_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    bench.library.cache_clear()
    ended = CliRunner().invoke(bench.main)
    assert ended.exit_code == 2
    assert ended.stderr.strip().endswith("install it with: pip install 'coffre[bench]'")
    bench.library.cache_clear()
