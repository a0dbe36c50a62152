"""The pipeline row: what is measured is what a client does, and it is checked before it is measured."""

from __future__ import annotations

import pytest
from coffre.bench._pipeline import Pipeline
from coffre.client._upload import CellCoder, CodedSegment
from coffre.cluster.errors import IntegrityError


def test_both_halves_return_a_rate() -> None:
    pipeline = Pipeline(4, 2, 2 << 20, seed=1)
    pipeline.check()
    assert pipeline.code() > 0
    assert pipeline.encrypt() > 0


@pytest.mark.parametrize("broken", ["parity", "checksum"])
def test_a_pipeline_that_does_not_return_what_went_in_is_not_measured(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = CellCoder.code

    def changed(self: CellCoder, segment: int, plain: bytes) -> CodedSegment:
        coded = code(self, segment, plain)
        cells, crcs = list(coded.cells), list(coded.crcs)
        if broken == "parity":
            cells[-1], crcs[-1] = cells[-2], crcs[-2]
        else:
            crcs[0] ^= 1
        return CodedSegment(segment, tuple(cells), tuple(crcs))

    monkeypatch.setattr(CellCoder, "code", changed)
    with pytest.raises(IntegrityError):
        Pipeline(4, 2, 1 << 20, seed=1).check()
