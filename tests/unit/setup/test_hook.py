"""`make hook`: git takes no commit that `make lint` would refuse for its layout, and looks at what is staged alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed here")

TIDY = '''"""Tidiness."""

from pathlib import Path


def test_nobody_is_called_utils() -> None:
    assert not list(Path(__file__).parent.parent.rglob("utils.py"))
'''


def run(home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "MAKE"))}
    return subprocess.run(
        command,
        cwd=home,
        env={**own, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A repository with the hook, this project's settings, a rule of tidiness, and nearly nothing else."""
    for name in ("Makefile", "pyproject.toml", ".ci/pre-commit"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_tidy.py").write_text(TIDY)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / ".gitignore").write_text(".venv\n")
    for command in (
        ("git", "init", "-q"),
        ("git", "config", "user.name", "Somebody"),
        ("git", "config", "user.email", "somebody@example.org"),
        ("make", "hook"),
        ("git", "add", "."),
    ):
        done = run(tmp_path, *command)
        assert done.returncode == 0, done.stderr
    return tmp_path


def test_what_is_staged_must_be_in_order_and_the_rest_does_not_count(home: Path) -> None:
    staged = home / "tests" / "new.py"
    staged.write_text("x  =  1\n")
    run(home, "git", "add", ".")
    refused = run(home, "git", "commit", "-qm", "Badly laid out")
    assert refused.returncode != 0
    assert "make format" in refused.stdout + refused.stderr

    staged.write_text('"""A module."""\n\nx = 1\n')
    run(home, "git", "add", ".")
    staged.write_text("x  =  1\n")  # not staged
    done = run(home, "git", "commit", "-qm", "In order")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "In order" in run(home, "git", "log", "--oneline").stdout

    (home / "tests" / "utils.py").write_text('"""A module."""\n')
    run(home, "git", "add", "tests/utils.py")
    assert run(home, "git", "commit", "-qm", "Untidy").returncode != 0


def test_the_hook_of_somebody_else_stays(home: Path) -> None:
    hook = home / ".git" / "hooks" / "pre-commit"
    assert run(home, "make", "hook").returncode == 0  # again is the same
    hook.write_text("#!/bin/sh\nexit 0\n")
    refused = run(home, "make", "hook")
    assert refused.returncode != 0
    assert "is there already" in refused.stdout
    assert hook.read_text() == "#!/bin/sh\nexit 0\n"
