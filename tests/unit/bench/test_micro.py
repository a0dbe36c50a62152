"""Micro benchmarks: what a ratio is, what counts as slower, and the command that says so."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from coffre.bench.bench_cli import bench
from coffre.bench.micro import Comparison, row_from_rounds
from coffre.bench.result import Row, read_results, write_results
from coffre.cluster.errors import ConfigurationError

ROOT = Path(__file__).parents[3]
BASELINE = ROOT / "bench" / "results" / "micro.json"
ROW = Row("encode", 0.001, "s", 0.004, "zfec_4_2", 0.25)
FASTEST = "partition_of"  # a benchmark of milliseconds


def test_a_ratio_is_that_of_the_quiet_rounds() -> None:
    """Half of the operation's rounds are disturbed, and a third of the reference's others."""
    rounds = zip([9.0] * 7 + [1.0] * 14, [0.5] * 11 + [7.0] * 10, strict=True)
    assert row_from_rounds("x", "r", list(rounds)) == Row("x", 0.5, "s", 1.0, "r", 0.5)


def test_of_two_measurements_the_quieter_one_counts() -> None:
    slow, fast = replace(ROW, ratio=0.4), replace(ROW, ratio=0.2)
    for order in ((slow, fast), (fast, slow)):
        found = Comparison(())
        for row in order:
            found.add(row, 0.3)
        assert found.rows == {"encode": fast}


@pytest.mark.parametrize("tolerance", [0.3, 0.6])
def test_slower_is_what_grew_by_more_than_the_tolerance(tolerance: float) -> None:
    for factor in ((1 + tolerance) * 1.01, (1 + tolerance) * 0.99, 1.0, 0.5):
        found = Comparison([ROW])
        found.add(replace(ROW, ratio=0.25 * factor), tolerance)
        slow = factor > 1 + tolerance
        assert found.slower() == (pytest.approx({"encode": factor - 1}) if slow else {})


def test_what_has_no_counterpart_is_not_compared() -> None:
    found = Comparison([ROW])
    found.add(replace(ROW, id="added", ratio=100.0), 0.3)
    found.add(replace(ROW, reference_id="isal", ratio=100.0), 0.3)
    assert not found.targets
    assert not found.slower()


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"rows": [asdict(ROW)]})])
def test_what_is_no_baseline_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "micro.json"
    path.write_text(content, "utf-8")
    with pytest.raises(ConfigurationError):
        read_results(path)


def test_the_committed_baseline_can_be_read() -> None:
    _, rows = read_results(BASELINE)
    assert FASTEST in {row.id for row in rows}
    assert len({row.id for row in rows}) == len(rows)


# ------------------------------------------------------------------ the command


def run(*arguments: object) -> Result:
    return CliRunner().invoke(bench, ["micro", "--only", FASTEST, *map(str, arguments)])


def baseline(path: Path, ratio: float) -> Path:
    """One of another processor, that knows the benchmark as much faster or slower than it can be."""
    write_results(path, [Row(FASTEST, 1e-3, "s", 1.0, "interpreter", ratio)], seed=1, directory=path.parent)
    content = json.loads(path.read_text())
    content["machine"]["cpu"] = "another"
    path.write_text(json.dumps(content))
    return path


def test_what_got_slower_is_shown_and_fails_only_when_asked_to(tmp_path: Path) -> None:
    path = baseline(tmp_path / "micro.json", 1e-3)
    for strict, status in (([], 0), (["--strict"], 1)):
        found = run("--baseline", path, *strict)
        assert found.exit_code == status, found.output
        assert f"slower: {FASTEST} by " in found.stdout
        assert "another processor" in found.stdout


def test_what_did_not_get_slower_passes(tmp_path: Path) -> None:
    found = run("--baseline", baseline(tmp_path / "micro.json", 1e6), "--strict")
    assert found.exit_code == 0, found.output
    assert "none of 1 operations got slower" in found.stdout


@pytest.mark.parametrize(
    "arguments", [("--baseline", "/nowhere/micro.json"), ("--save",), ("--dir", __file__)]
)
def test_bad_arguments_end_in_one_line(arguments: tuple[str, ...]) -> None:
    found = run(*arguments)
    assert found.exit_code == 2
    assert "Traceback" not in found.stderr
    assert found.stderr.strip().splitlines()[-1]


def test_the_target_of_make_is_this_command() -> None:
    said = subprocess.run(["make", "-n", "bench-micro"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{Path(sys.executable).parent.name}/coffre bench micro" in said.stdout
