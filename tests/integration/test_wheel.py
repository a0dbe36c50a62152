"""What `pip install .` gives to somebody who asks for no extras: a regular package, and a command line that works."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
PARTS = ("proto", "codec", "cluster", "node", "client", "bench", "deploy")
FILES = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE")

# Runs in the new environment. Every `--help` that help itself leads to, with its status and text.
WALK = """
import contextlib, io, json, re, sys
from coffre.cli import main

def run(*arguments):
    sys.argv, said = ["coffre", *arguments], io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as end:
            return end.code or 0, said.getvalue()

def walk(*path):
    status, said = run(*path, "--help")
    yield " ".join(path), status, said
    section = said.partition("\\nCommands:\\n")[2]
    for name in re.findall(r"^  ([a-z][a-z-]*)(?:  |$)", section, re.M):
        yield from walk(*path, name)

print(json.dumps(list(walk())))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as pip builds it, from a copy, so that the kernel of this checkout stays as it is."""
    source = tmp_path_factory.mktemp("source")
    for part in PARTS:
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(source / "dist")]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=PATIENCE_SECONDS)
    (made,) = (source / "dist").glob("*.whl")
    return made


def needed_by(requirements: list[str]) -> set[str]:
    """The distributions that these requirements bring, without any extra, and theirs in turn."""
    found: set[str] = set()
    wanted = [Requirement(each) for each in requirements]
    while wanted:
        requirement = wanted.pop()
        if requirement.name in found or (
            requirement.marker and not requirement.marker.evaluate({"extra": ""})
        ):
            continue
        found.add(requirement.name)
        wanted += map(Requirement, importlib.metadata.requires(requirement.name) or [])
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel and what it requires, as if pip had fetched that."""
    directory = tmp_path_factory.mktemp("plain")
    venv.create(directory, symlinks=True, with_pip=False)
    python = directory / "bin" / "python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*pip, str(wheel)], check=True, timeout=PATIENCE_SECONDS)
    (site,) = directory.glob("lib/python*/site-packages")
    (metadata,) = site.glob("coffre-*.dist-info")
    requirements = importlib.metadata.PathDistribution(metadata).requires or []
    for name in needed_by(requirements):
        for file in importlib.metadata.files(name) or ():
            target = site / file
            if ".." not in file.parts and target.suffix != ".pyc":
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(str(file.locate()))
    return python.parent


def run(command: list[str | Path], home: Path) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        command, cwd=home, env=own, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


def test_help_works_all_over_without_extras(installed: Path, tmp_path: Path) -> None:
    top = run([installed / "coffre", "--help"], tmp_path)
    assert (top.returncode, top.stderr) == (0, "")
    walked = run([installed / "python", "-c", WALK], tmp_path)
    assert walked.returncode == 0, walked.stderr
    pages = {path: (status, said) for path, status, said in json.loads(walked.stdout)}
    assert {path for path, (status, _) in pages.items() if status} == set()
    assert not [path for path, (_, said) in pages.items() if "Traceback" in said]
    assert {
        "put",
        "node run",
        "cluster add-node",
        "pki request node",
        "dev run",
        "bench",
        "completion",
    } <= set(pages)
    lacking = {path for path, (_, said) in pages.items() if "Not installed" in said} - {""}
    assert lacking == {"bench"}
    assert "pip install 'coffre[bench]'" in pages["bench"][1]


def test_a_branch_says_which_extra_it_lacks(installed: Path, tmp_path: Path) -> None:
    for command, extra in ((["bench", "load", "--rate", "3"], "bench"), (["dev", "run", "--once"], "demo")):
        said = run([installed / "coffre", *command], tmp_path)
        assert said.returncode == 2, said.stderr
        assert said.stderr.count("\n") == 1
        assert f"pip install 'coffre[{extra}]'" in said.stderr


def test_a_folder_of_the_same_name_beside_a_script_takes_nothing_over(
    installed: Path, tmp_path: Path
) -> None:
    """A namespace package would be: all folders of its name on the path belong to it, and theirs come first."""
    (tmp_path / "later" / "coffre" / "client").mkdir(parents=True)
    script = "import sys; sys.path.append('later'); import coffre.client; print(coffre.__file__, list(coffre.__path__))"
    said = run([installed / "python", "-c", script], tmp_path)
    assert said.returncode == 0, said.stderr
    assert said.stdout.split()[0].endswith("site-packages/coffre/__init__.py")
    assert "later" not in said.stdout

    (tmp_path / "coffre").mkdir()  # what users have: data, configuration, a checkout
    (tmp_path / "service.py").write_text("from coffre.client import Client; print(Client.__module__)")
    said = run([installed / "python", "service.py"], tmp_path)
    assert (said.returncode, said.stdout) == (0, "coffre.client.sync_client\n"), said.stderr


def test_every_name_of_a_wheel_is_there(installed: Path, tmp_path: Path) -> None:
    """Public packages import without extras."""
    script = "import coffre.client, coffre.cluster.errors, coffre.codec as c; print(c.__name__)"
    assert run([installed / "python", "-c", script], tmp_path).stdout == "coffre.codec\n"
