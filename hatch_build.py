"""Build hook: compiles the Reed-Solomon kernel, and makes of a wheel's `coffre` a regular package.

An install without a C compiler still works, on zfec. In the tree `coffre` is a namespace that spans the rooms, so it
has no `__init__.py`; but any folder that is called `coffre` beside a user's script would take over a namespace package.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("codec", "csrc")
MODULE = Path("codec", "coffre", "codec", "_kernel")
PATH_IN_WHEEL = Path("coffre", "codec", "_kernel")
PACKAGE = Path("deploy", "wheel", "__init__.py")
FLAGS = (
    "-std=c11",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-DNDEBUG",
    "-Wall",
    "-Wextra",
)


class KernelNotCompiled(Exception):
    """The kernel could not be compiled; the text says why."""


def compile_kernel(root: Path, output: Path, extra_flags: tuple[str, ...] = ()) -> None:
    """Compile codec/csrc into the extension module `output`.

    Raises KernelNotCompiled when Python.h or a working C compiler is missing.
    """
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        raise KernelNotCompiled(f"Python.h is not in {include}; install Python's development files")
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    sources = sorted(str(path) for path in (root / SOURCES).glob("*.c"))
    # The interpreter provides its own symbols when it loads the module; only Darwin's linker must be told.
    link = ("-bundle", "-undefined", "dynamic_lookup") if sys.platform == "darwin" else ("-shared",)
    partial = output.with_name(f"{output.name}.{os.getpid()}.partial")
    command = [*compiler, *FLAGS, *extra_flags, *link, f"-I{include}", *sources, "-o", str(partial)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise KernelNotCompiled(f"the C compiler {compiler[0]!r} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        partial.unlink(missing_ok=True)
        first = next(
            (line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:300]
        )
        raise KernelNotCompiled(f"{compiler[0]} failed: {first}")
    partial.replace(output)  # at once: a process that is importing the old module keeps its own copy


class KernelBuildHook(BuildHookInterface[Any]):
    """Adds the compiled kernel to editable installs and wheels, and the package's `__init__.py` to wheels.

    COFFRE_REQUIRE_KERNEL=1 turns a kernel that cannot be compiled into a failed build.
    """

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the kernel beside its package, and name what the wheel has more than the tree."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        if version != "editable":
            build_data["force_include"][str(root / PACKAGE)] = "coffre/__init__.py"
        suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
        output = root / f"{MODULE}{suffix}"
        try:
            compile_kernel(root, output)
        except KernelNotCompiled as error:
            if os.environ.get("COFFRE_REQUIRE_KERNEL") == "1":
                self.app.abort(
                    f"coffre: COFFRE_REQUIRE_KERNEL is set, but the kernel was not compiled: {error}"
                )
            # A stale kernel of older sources must not be picked up in place of the fallback.
            output.unlink(missing_ok=True)
            self.app.display_warning(
                f"coffre: the codec kernel was not compiled ({error}); coding will run on zfec, much slower"
            )
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        if version != "editable":
            build_data["force_include"][str(output)] = f"{PATH_IN_WHEEL}{suffix}"
