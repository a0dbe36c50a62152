"""Results: ratios, targets, the published JSON, and the table that says whether a target is reached."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
from coffre.bench.result import (
    Bound,
    Figure,
    Measurement,
    Quantity,
    Row,
    Target,
    _filesystem,
    _number,
    machine,
    one_line,
    print_table,
    read_results,
    row_of,
    take_turns,
    write_results,
)
from coffre.cluster.errors import InvalidArgument
from coffre.cluster.version import __version__
from rich.console import Console

PUT = Figure("put", "calls/s")
ROW = Row("put_4k", 4000.0, "puts/s", 8000.0, "grpc_unary_4k", 0.5)


def one(name: str, value: float) -> Measurement:
    return Measurement(name, value, "calls/s", "")


def shown(rows: list[Row], targets: dict[str, Target]) -> str:
    sink = io.StringIO()
    print_table(rows, targets, Console(file=sink, width=200))
    return sink.getvalue()


def test_a_row_fits_a_line_of_progress() -> None:
    assert one_line(ROW) == "put_4k 4000 puts/s, 0.500 of grpc_unary_4k"
    assert one_line(row_of(PUT, (2e6, one("raw", 1e6)))) == "put 2M calls/s, 2.000 of raw"


def test_a_row_carries_its_reference() -> None:
    assert row_of(PUT, (4.0, one("raw", 8.0))) == Row("put", 4.0, "calls/s", 8.0, "raw", 0.5)


async def test_reference_and_product_take_turns_and_the_ratio_is_of_each_round() -> None:
    """The machine slows down to a tenth in the last round; ratios of neighbours do not notice."""
    speeds = iter([8.0, 4.0, 5.0, 10.0, 0.8, 0.4])
    turns: list[str] = []

    def measure(name: str) -> float:
        turns.append(name)
        return next(speeds)

    async def product() -> float:
        return measure("put")

    async def reference() -> Measurement:
        return one("raw", measure("raw"))

    row = row_of(PUT, *await take_turns(product, reference, rounds=3))
    assert turns == ["raw", "put", "put", "raw", "raw", "put"]
    assert row == Row("put", 4.0, "calls/s", 8.0, "raw", 0.5)
    with pytest.raises(InvalidArgument):
        await take_turns(product, reference, rounds=0)


@pytest.mark.parametrize(
    ("target", "reached"),
    [
        (Target(Bound.AT_LEAST, 0.5), True),
        (Target(Bound.AT_LEAST, 0.51), False),
        (Target(Bound.AT_MOST, 0.5), True),
        (Target(Bound.AT_MOST, 0.49), False),
        (Target(Bound.AT_LEAST, 4000, Quantity.VALUE), True),
        (Target(Bound.AT_LEAST, 4001, Quantity.VALUE), False),
    ],
)
def test_a_target_is_reached_on_its_good_side(target: Target, reached: bool) -> None:
    assert target.reached(ROW) is reached
    text = shown([ROW], {"put_4k": target})
    assert target.bound.value in text
    assert ("yes" in text) is reached
    assert ("NO" in text) is not reached


@pytest.mark.parametrize(
    ("ratio", "value", "reached"), [(0.5, 4000, True), (0.51, 4000, False), (0.5, 4001, False)]
)
def test_a_target_of_two_parts_needs_both(ratio: float, value: float, reached: bool) -> None:
    both = Target(Bound.AT_LEAST, ratio, also=Target(Bound.AT_LEAST, value, Quantity.VALUE))
    assert both.reached(ROW) is reached
    text = shown([ROW], {"put_4k": both})
    assert f"ratio at least {ratio}, and at least {value}" in text


def test_what_is_not_a_number_reaches_no_target() -> None:
    row = Row("x", math.nan, "s", 1.0, "y", math.nan)
    assert not Target(Bound.AT_LEAST, 0).reached(row)
    assert not Target(Bound.AT_MOST, 1).reached(row)


def test_a_target_that_nobody_measured_is_not_reached() -> None:
    text = shown([ROW], {"get_4k": Target(Bound.AT_LEAST, 0.5)})
    assert "not measured" in text
    assert "NO" in text


def test_the_published_file_has_its_machine_version_seed_time_and_rows(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    digest = write_results(path, [ROW], seed=7, directory=tmp_path)
    content = json.loads(path.read_text())
    assert list(content) == ["machine", "version", "seed", "time", "rows"]
    assert (content["version"], content["seed"]) == (__version__, 7)
    assert content["time"].endswith("Z")
    assert read_results(path) == (machine(tmp_path), (ROW,))
    assert list(tmp_path.iterdir()) == [path]
    assert digest == write_results(path, [ROW], seed=8, directory=tmp_path)
    assert digest != write_results(path, [row_of(PUT, (1.0, one("raw", 1.0)))], seed=7, directory=tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([Row("x", math.inf, "s", 1.0, "y", 1.0)], "not finite"),
        ([Row("x", 1.0, "s", 1.0, "y", math.nan)], "not finite"),
        ([ROW, ROW], "same id"),
    ],
)
def test_what_cannot_be_published_is_refused_and_the_old_file_stays(
    rows: list[Row], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    path.write_text("the old one")
    with pytest.raises(InvalidArgument, match=message):
        write_results(path, rows, seed=1, directory=tmp_path)
    assert path.read_text() == "the old one"


def test_the_machine_is_described_but_not_named(tmp_path: Path) -> None:
    found = machine(tmp_path)
    assert found.cores >= 1
    assert found.memory_bytes > 1 << 28
    assert found.filesystem != "unknown"
    assert "" not in (found.cpu, found.kernel, found.python, found.filesystem)
    assert set(asdict(found)) == {"cpu", "cores", "memory_bytes", "kernel", "python", "filesystem"}


def test_the_filesystem_is_that_of_the_nearest_mount() -> None:
    mounts = "\n".join(
        [
            "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/a rw",
            "22 21 8:2 / /srv/disk rw - xfs /dev/b rw",
            "23 21 8:3 / /with\\040space rw shared:2 master:3 - btrfs /dev/c rw",
        ]
    )
    assert _filesystem(mounts, Path("/srv/disk/bench")) == "xfs"
    assert _filesystem(mounts, Path("/srv/diskette")) == "ext4"
    assert _filesystem(mounts, Path("/with space/x")) == "btrfs"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.5, "0.5"),
        (9999.0, "9999"),
        (123456.0, "123.5k"),
        (2.5e9, "2.5G"),
        (0.0002, "200µ"),
    ],
)
def test_numbers_have_four_digits_and_a_prefix(value: float, text: str) -> None:
    assert _number(value) == text
