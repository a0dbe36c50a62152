"""The measurement of a node's store runs, and its figures are figures."""

from __future__ import annotations

from pathlib import Path

from coffre.bench.store import Load, measure


async def test_every_figure_is_made(tmp_path: Path) -> None:
    load = Load(keys=200, batch=32, cell_bytes=100, seed=3)
    assert load.keys == 192
    figures = await measure(tmp_path / "node", load)
    assert set(figures) == {
        "accept_cpu",
        "settle_cpu",
        "read_cpu",
        "read_marked_cpu",
        "read_p99",
        "page_ms",
        "open_ms",
        "index_bytes_per_shard",
    }
    assert all(figure > 0 for figure in figures.values())
