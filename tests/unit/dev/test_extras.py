"""What needs no extra: development clusters and `coffre.testing`, on an installation with nothing but the library."""

from __future__ import annotations

import subprocess
import sys

import pytest

EXTRAS = ("hdrh", "jinja2", "markupsafe", "matplotlib", "msgspec", "numpy", "pydicom", "pyeclib", "zfex")


@pytest.mark.parametrize("module", ["coffre.dev.cli", "coffre.testing", "coffre.testing.fixtures"])
def test_what_applications_develop_with_needs_no_extra(module: str) -> None:
    script = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\nimport {module}"
    subprocess.run([sys.executable, "-c", script], check=True)
