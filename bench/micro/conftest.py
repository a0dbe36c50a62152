"""Every micro benchmark runs `beside` a reference; what was found goes to a file for bench/micro/run.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from coffre.bench.micro import MicroRow, rows_to_json
from micro_references import Beside
from pytest_benchmark.fixture import BenchmarkFixture

ROWS = pytest.StashKey[list[MicroRow]]()


def name_of(item: pytest.Item) -> str:
    return item.name.removeprefix("bench_")


@pytest.fixture
def beside(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Beside:
    return Beside(benchmark, name_of(request.node), request.config.stash[ROWS])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--large", action="store_true", help="Ten million keys, too.")
    parser.addoption("--names", help="Benchmarks of these names alone, as JSON.")
    parser.addoption("--rows", type=Path, help="Where the rows go, as JSON.")
    parser.addoption(
        "--place", type=Path, default=Path(".coffre-bench"), help="Where the index lives meanwhile."
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--names") is not None:
        names = json.loads(config.getoption("--names"))
        items[:] = [item for item in items if name_of(item) in names]


def pytest_sessionfinish(session: pytest.Session) -> None:
    path: Path | None = session.config.getoption("--rows")
    if path is not None:
        rows = session.config.stash[ROWS]
        path.write_text(json.dumps(rows_to_json(rows)), encoding="utf-8")
