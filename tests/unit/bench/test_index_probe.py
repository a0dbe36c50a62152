"""The index probe: shards go in through the store's seam, and a lookup notices one that is not as it was put."""

from __future__ import annotations

import json
import statistics
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from coffre.bench import index_probe
from coffre.bench._workload import put_records
from coffre.bench.fhir_records import fhir_records
from coffre.bench.index_probe import fill, lookup
from coffre.cluster.errors import IntegrityError
from coffre.cluster.names import ObjectName
from coffre.dev.in_process import in_process_cluster
from coffre.node.store import Settle, State

SHARDS = 50


@pytest.fixture
async def filled(tmp_path: Path) -> Path:
    """A data directory with shards in it."""
    told: list[int] = []
    await fill(tmp_path / "data", SHARDS, told.append)
    assert told == [SHARDS]
    return tmp_path / "data"


async def test_every_shard_is_there_and_settled(filled: Path) -> None:
    async with index_probe.opened(filled) as store:
        assert (await store.status()).shards == SHARDS
        for number in range(SHARDS):
            (version,) = await store.read(index_probe.name_of(number), want_cell=True)
            assert (version.stamp, version.state) == (index_probe.stamp_of(number), State.SETTLED)
            assert version.cell is not None


async def test_how_far_a_fill_has_come_is_told_ten_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_probe, "_BATCH_SHARDS", 3)
    told: list[int] = []
    await fill(tmp_path / "data", SHARDS, told.append)
    assert len(told) == 10
    assert told == sorted(told)
    assert told[-1] == SHARDS


async def test_a_lookup_takes_time_and_is_compared(filled: Path) -> None:
    assert 0 < await lookup(filled, SHARDS, 20, seed=1) < 1
    with pytest.raises(IntegrityError, match="not in the index"):
        await lookup(filled, 100 * SHARDS, 20, seed=1)


async def test_a_shard_that_is_not_settled_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = index_probe._mutations
    monkeypatch.setattr(
        index_probe, "_mutations", lambda *of: (one for one in whole(*of) if not isinstance(one, Settle))
    )
    await fill(tmp_path / "data", 1, lambda done: None)
    with pytest.raises(IntegrityError):
        await lookup(tmp_path / "data", 1, 1, seed=1)


def test_the_command_prints_what_it_did(tmp_path: Path) -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(index_probe.main, arguments)

    assert json.loads(run("fill", str(tmp_path / "data"), "30").stdout) == {"shards": 30}
    assert json.loads(run("lookup", str(tmp_path / "data"), "30", "10", "1").stdout)["p99_s"] > 0
    wrong = run("fill", str(tmp_path / "data"), "many")
    assert wrong.exit_code == 2
    assert "Usage" in wrong.stderr


async def test_a_shard_is_what_a_node_gets_of_a_fhir_record() -> None:
    cluster = in_process_cluster(4, 2)
    records = list(islice(fhir_records(1), 20))
    client = cluster.client()
    await put_records(client, "records", "one", records, len(records))
    cell_bytes = []
    for record in records:
        name = ObjectName("clinic", "records", f"one/{record.key}")
        (version,) = await cluster.stores[1].read(name, want_cell=True)
        assert version.cell is not None
        cell_bytes.append(len(version.cell.data))
        assert len(version.manifest) == len(index_probe.MANIFEST)
        assert len(version.mac) == len(index_probe.MAC)
        assert len(version.placement) == len(index_probe.PLACEMENT)
    await cluster.aclose()
    assert statistics.mean(cell_bytes) == pytest.approx(len(index_probe.CELL), rel=0.1)
