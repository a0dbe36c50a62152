"""Runs the codec tests on a kernel compiled with AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/asan/run.py [pytest arguments]

Exits with pytest's status, and non-zero when a sanitizer reports anything. Needs gcc and hatchling.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SANITIZE = (
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-g",
    "-O1",
)
# These run other processes, with and without the kernel, or compile it anew: it is not under test there.
NOT_HERE = ("test_codec_bench.py", "test_codec_build.py", "test_codec_tier.py")
LOCATION_CHECK = "import coffre.codec._kernel as kernel; print(kernel.__file__)"


def sanitized_package(folder: Path) -> None:
    """A copy of coffre.codec in `folder` whose kernel is instrumented."""
    sys.path.insert(0, str(ROOT))
    import hatch_build

    package = folder / "coffre" / "codec"
    package.mkdir(parents=True)
    for source in (ROOT / "codec" / "coffre" / "codec").glob("*.py"):
        shutil.copy(source, package)
    hatch_build.compile_kernel(ROOT, package / f"_kernel{sysconfig.get_config_var('EXT_SUFFIX')}", SANITIZE)


def runtime_library() -> str:
    done = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    return str(Path(done.stdout.strip()).resolve())


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="coffre-asan-") as name:
        folder = Path(name)
        sanitized_package(folder)
        environment = {
            **os.environ,
            "LD_PRELOAD": runtime_library(),
            "PYTHONPATH": str(folder),
            "PYTHONMALLOC": "malloc",  # so that every buffer has its own redzones
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        located = subprocess.run(
            [sys.executable, "-c", LOCATION_CHECK],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if not located.stdout.startswith(name):
            print(
                f"the instrumented kernel is not the one in use: {located.stdout}{located.stderr}",
                file=sys.stderr,
            )
            return 1
        tests = ROOT / "tests" / "unit" / "codec"
        ignored = [f"--ignore={tests / file}" for file in NOT_HERE]
        command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", str(tests), *ignored]
        return subprocess.run([*command, *arguments], env=environment, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
