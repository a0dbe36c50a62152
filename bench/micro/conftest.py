"""Every micro benchmark runs `beside` a reference; what was found goes to a file for bench/micro/run.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from coffre.bench.micro import MicroRow, rows_to_json
from micro_references import Beside
from pytest_benchmark.fixture import BenchmarkFixture

ROWS = pytest.StashKey[list[MicroRow]]()


@pytest.fixture
def beside(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Beside:
    name = request.node.name.removeprefix("bench_")
    return Beside(benchmark, name, request.config.stash[ROWS])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--large", action="store_true", help="Ten million keys, too.")
    parser.addoption("--rows", type=Path, help="Where the rows go, as JSON.")
    parser.addoption(
        "--place", type=Path, default=Path(".coffre-bench"), help="Where the index lives meanwhile."
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


def pytest_sessionfinish(session: pytest.Session) -> None:
    path: Path | None = session.config.getoption("--rows")
    if path is not None:
        rows = session.config.stash[ROWS]
        path.write_text(json.dumps(rows_to_json(rows)), encoding="utf-8")
