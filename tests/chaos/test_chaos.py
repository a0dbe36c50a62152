"""A minute of chaos in the default run; `make chaos` runs longer, with other seeds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 60


@pytest.mark.timeout(420)
@pytest.mark.parametrize("network", ["namespaces", "proxies"])
def test_a_cluster_in_trouble_loses_nothing_and_never_lies(network: str) -> None:
    """Half of the time with each kind of network; where namespaces are not allowed, proxies take their place."""
    command = [sys.executable, "-m", "tests.chaos", "--seconds", str(SECONDS // 2)]
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
