"""`make setup` looks for a compiler and Python.h before it installs anything, and says the line that brings them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
INCLUDE = sysconfig.get_path("include")


@pytest.fixture
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_check", ROOT / "setup_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_setup(place: Path, *variables: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`make setup` into a folder that is not there yet, with a Python that can do no more than run the check."""
    python = place / "python3"
    python.write_text(
        f'#!/bin/sh\ncase "$1" in setup_check.py) exec {sys.executable} "$@";; *) exit 9;; esac\n'
    )
    python.chmod(0o755)
    return subprocess.run(
        ["make", "setup", f"VENV={place / 'venv'}", f"PYTHON={python}", *variables],
        cwd=ROOT,
        env={**os.environ, "MAKEFLAGS": "", "WITHOUT_KERNEL": "", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_a_compiler_setup_stops_with_one_line_that_helps(check: ModuleType, tmp_path: Path) -> None:
    done = make_setup(tmp_path, CC="/nonexistent/cc")
    assert done.returncode == 2
    assert "/nonexistent/cc does not run" in done.stderr
    assert [line.strip() for line in done.stderr.splitlines() if "apt-get" in line] == [check.INSTALL]
    assert "WITHOUT_KERNEL=1" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_the_fallback_can_be_accepted(tmp_path: Path) -> None:
    """The check is content; what comes next fails here, since this Python does nothing else."""
    done = make_setup(tmp_path, "WITHOUT_KERNEL=1", CC="/nonexistent/cc")
    assert "Coffre cannot be set up" not in done.stderr
    assert "Error 9" in done.stderr


def test_python_h_is_looked_for(check: ModuleType, tmp_path: Path) -> None:
    (found,) = check.missing_for_kernel(["cc"], str(tmp_path))
    assert f"no Python.h in {tmp_path}" in found


def test_a_compiler_that_compiles_nothing_is_no_compiler(check: ModuleType, tmp_path: Path) -> None:
    """gcc without the header files of the C library, for example."""
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "stdio.h: No such file" >&2; exit 1; }\n')
    compiler.chmod(0o755)
    (found,) = check.missing_for_kernel([str(compiler)], INCLUDE)
    assert "stdio.h: No such file" in found


def test_an_old_python_and_one_without_venv_are_named(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check.sys, "version_info", (3, 10, 2))
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None)
    assert [each.split(" (")[0] for each in check.missing_for_python()] == [
        "Python 3.11 or later",
        "Python's venv module",
    ]


def test_the_line_is_the_same_everywhere(check: ModuleType) -> None:
    """README, what the check says, and the automatic run install the same."""
    packages = check.INSTALL.removeprefix("apt-get install -y ")
    assert f"    {check.INSTALL}\n" in (ROOT / "README.md").read_text("utf-8")
    assert f"apt-get install -y -qq {packages}\n" in (ROOT / ".ci" / "run").read_text("utf-8")
