"""Micro benchmarks: what a ratio is, what counts as slower, and the command that says so."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from coffre.bench.micro import (
    Baseline,
    MicroRow,
    Noise,
    Verdict,
    compare,
    print_changes,
    quieter,
    row_from_rounds,
)
from coffre.bench.typed_json import plain
from coffre.cluster.errors import ConfigurationError
from rich.console import Console

from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[3]
ROW = MicroRow("encode", "zfec_4_2", Noise.CPU, 0.25, 0.05, 0.001)
FASTEST = "partition_of"  # a benchmark of milliseconds


def test_a_ratio_is_that_of_the_quiet_rounds() -> None:
    """Half of the operation's rounds are disturbed, and a third of the reference's others."""
    durations = [0.5] * 11 + [7.0] * 10
    references = [9.0] * 7 + [1.0] * 14
    row = row_from_rounds("x", "r", Noise.CPU, durations, references)
    assert (row.ratio, row.spread, row.seconds) == (0.5, 0.0, 0.5)
    assert row_from_rounds("x", "r", Noise.CPU, durations + [7.0] * 2, references).spread == 13.0


def test_of_two_measurements_the_quieter_one_counts() -> None:
    other = replace(ROW, id="other")
    slow, fast = replace(ROW, ratio=0.4), replace(ROW, ratio=0.2)
    assert quieter([slow, other], [fast]) == [fast, other]
    assert quieter([fast, other], [slow]) == [fast, other]


@pytest.mark.parametrize("noise", list(Noise))
def test_slower_is_what_grew_by_more_than_the_tolerance(noise: Noise) -> None:
    before = replace(ROW, noise=noise)
    limit = 1 + noise.tolerance
    factors = (limit * 1.01, limit * 0.99, 1.0, 1.01 / limit, 0.99 / limit)
    verdicts = [compare([before], [replace(before, ratio=0.25 * x)])[0].verdict for x in factors]
    assert verdicts == [Verdict.SLOWER, Verdict.SAME, Verdict.SAME, Verdict.SAME, Verdict.FASTER]


def test_what_has_no_counterpart_is_said_and_not_compared() -> None:
    found = compare([ROW, replace(ROW, id="gone")], [ROW, replace(ROW, id="added")])
    assert [(change.id, change.verdict) for change in found] == [
        ("encode", Verdict.SAME),
        ("added", Verdict.NEW),
        ("gone", Verdict.NOT_RUN),
    ]
    assert compare([ROW], [replace(ROW, reference_id="isal")])[0].verdict is Verdict.NEW


def test_the_table_names_what_got_slower() -> None:
    shown = io.StringIO()
    slow = replace(ROW, ratio=0.5)
    print_changes(compare([ROW], [slow]), Console(file=shown, width=140))
    assert "SLOWER" in shown.getvalue()
    assert "slower: encode by 100%" in shown.getvalue()
    calm = io.StringIO()
    print_changes(compare([ROW], [ROW]), Console(file=calm, width=140))
    assert "none of 1 operations got slower" in calm.getvalue()


def test_a_baseline_comes_back_as_it_was_written(tmp_path: Path) -> None:
    baseline = Baseline("cpu", "1.2.3", (ROW, replace(ROW, id="insert", noise=Noise.DISK)))
    baseline.write(tmp_path / "micro.json")
    assert Baseline.read(tmp_path / "micro.json") == baseline


def written(**changed: object) -> str:
    return json.dumps({"format": 1, "cpu": "", "version": "", "rows": [plain(ROW) | changed]})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "cpu": "", "version": "", "rows": []}',
        '{"format": 1, "cpu": "", "version": "", "rows": [{"id": "x"}]}',
        written(ratio=0.0),
        written(spread=None),
        written(noise="tape"),
    ],
)
def test_what_is_no_baseline_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "micro.json"
    path.write_text(content, "utf-8")
    with pytest.raises(ConfigurationError):
        Baseline.read(path)


def test_the_committed_baseline_can_be_read() -> None:
    rows = Baseline.read(ROOT / "bench" / "results" / "micro.json").rows
    assert FASTEST in {row.id for row in rows}
    assert len({row.id for row in rows}) == len(rows)


# ------------------------------------------------------------------ the command


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "bench" / "micro" / "run.py"
    command = [sys.executable, str(script), "--only", FASTEST, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False, cwd=ROOT
    )


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    """One that knows the benchmark as a thousand times faster than it can be."""
    path = tmp_path / "micro.json"
    Baseline("another", "0", (MicroRow(FASTEST, "interpreter", Noise.CPU, 1e-3, 0.1, 1e-3),)).write(path)
    return path


def test_what_got_slower_is_shown_and_fails_only_when_asked_to(baseline: Path) -> None:
    for strict, status in (([], 0), (["--strict"], 1)):
        found = run("--baseline", str(baseline), *strict)
        assert found.returncode == status, found.stdout + found.stderr
        assert f"slower: {FASTEST}" in found.stdout
        assert "another processor" in found.stdout


def test_what_got_faster_passes(baseline: Path) -> None:
    Baseline("another", "0", (MicroRow(FASTEST, "interpreter", Noise.CPU, 1e6, 0.1, 1e-3),)).write(baseline)
    found = run("--baseline", str(baseline), "--strict")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "faster" in found.stdout


@pytest.mark.parametrize(
    "arguments", [("--baseline", "/nowhere/micro.json"), ("--save",), ("--dir", str(Path(__file__)))]
)
def test_bad_arguments_end_in_one_line(arguments: tuple[str, ...]) -> None:
    found = run(*arguments)
    assert found.returncode == 2
    assert "Traceback" not in found.stderr
    assert found.stderr.strip().splitlines()[-1]
