"""The pipeline row: what is measured is what a client does, and it is checked before it is measured."""

from __future__ import annotations

import pytest
from coffre.bench.figures._coding import Pipeline
from coffre.client.writing import CellCoder
from coffre.cluster.errors import IntegrityError
from coffre.proto.shard_stream import ShardChunk


def test_both_halves_return_a_rate() -> None:
    pipeline = Pipeline(4, 2, 2 << 20, seed=1)
    pipeline.check()
    assert pipeline.code() > 0
    assert pipeline.encrypt() > 0


@pytest.mark.parametrize("broken", ["parity", "checksum"])
def test_a_pipeline_that_does_not_return_what_went_in_is_not_measured(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = CellCoder.finish

    def changed(self: CellCoder) -> list[ShardChunk]:
        chunks = finish(self)
        last = chunks[-1].cells[0]
        if broken == "parity":
            before = chunks[-2].cells[0]
            last.data, last.crc = before.data, before.crc
        else:
            last.crc ^= 1
        return chunks

    monkeypatch.setattr(CellCoder, "finish", changed)
    with pytest.raises(IntegrityError):
        Pipeline(4, 2, 1 << 20, seed=1).check()
