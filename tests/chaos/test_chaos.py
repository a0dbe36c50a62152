"""Some seconds of chaos in the default run, a minute in `make test-all`; `make chaos` runs longer, with other seeds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.amounts import amount

SECONDS = amount(15, 30)  # with each kind of network


@pytest.mark.first
@pytest.mark.timeout(420)
@pytest.mark.parametrize("network", ["namespaces", pytest.param("proxies", marks=pytest.mark.long)])
def test_a_cluster_in_trouble_loses_nothing_and_never_lies(network: str) -> None:
    """Where namespaces are not allowed, proxies take their place."""
    command = [sys.executable, "-m", "tests.chaos", "--seconds", str(SECONDS)]
    done = subprocess.run(
        command + (["--proxies"] if network == "proxies" else []),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill -9" in done.stdout
    assert "puts" in done.stdout
    assert "1 x add-node" in done.stdout  # and what it moved was complete in the end
