"""What `make setup` needs of this machine, looked for before anything is installed, and one line that installs it.

Runs on any Python 3, with nothing but the standard library: `python3 setup_check.py`. With `--without-kernel` a machine
without a C compiler will do: coding then runs on zfec, many times slower. Exit status 2 when something is missing.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PYTHON_MIN = (3, 11)
INSTALL = "apt-get install -y gcc make python3 python3-dev python3-venv"  # as README says it
FALLBACK = "make setup WITHOUT_KERNEL=1"
_PROGRAM = "#include <Python.h>\nint main(void) { return PY_VERSION_HEX == 0; }\n"


def missing_for_python() -> list[str]:
    """What the interpreter itself lacks."""
    found = []
    if sys.version_info < PYTHON_MIN:
        found.append("Python {}.{} or later (this is {}.{})".format(*PYTHON_MIN, *sys.version_info[:2]))
    if any(importlib.util.find_spec(name) is None for name in ("venv", "ensurepip")):
        found.append("Python's venv module (Debian: python3-venv)")
    return found


def missing_for_kernel(compiler: list[str], include: str) -> list[str]:
    """What the C kernel of the codec lacks: the compiler is tried, on a program of one line that needs Python.h."""
    try:
        subprocess.run(
            [*compiler, "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return [f"a C compiler ({compiler[0]} does not run)"]
    if not (Path(include) / "Python.h").is_file():
        return [f"Python's header files (no Python.h in {include}; Debian: python3-dev)"]
    with tempfile.TemporaryDirectory() as place:
        output = str(Path(place) / "tried.o")
        done = subprocess.run(
            [*compiler, "-x", "c", "-c", "-I" + include, "-", "-o", output],
            input=_PROGRAM.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
    if done.returncode != 0:
        first = next(iter(done.stderr.decode(errors="replace").splitlines()), "it says nothing")
        return [f"a C compiler that works ({compiler[0]}: {first.strip()})"]
    return []


def main(arguments: list[str]) -> int:
    """Print what is missing and how to get it; 0 when nothing is."""
    missing, without = missing_for_python(), "--without-kernel" in arguments
    if not without:
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
        lacking = missing_for_kernel(compiler, str(sysconfig.get_path("include")))
    else:
        lacking = []
    if not missing and not lacking:
        return 0
    print("Coffre cannot be set up here. It needs", file=sys.stderr)
    for each in missing + lacking:
        print("  - " + each, file=sys.stderr)
    print("On Debian, as root:\n    " + INSTALL, file=sys.stderr)
    if not missing:
        print("Or, to code on zfec, many times slower:\n    " + FALLBACK, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
