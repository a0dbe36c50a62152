"""Every code block of README and docs does what it says: it is run, and what it prints is compared.

Shell and Python run in a folder that is as its page says: a checkout in which `make run` has started a cluster.
Settings are loaded by whoever reads them. Somebody else runs `make run` and `make test` (tests/fresh), and the chapters
of docs/operations.md that set up and mend a cluster (tests/runbooks).
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import inspect
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from coffre.cli._tree import tree
from coffre.client import connect, load_client_config
from coffre.cluster.admin.operator import load_operator_config
from coffre.cluster.errors import ConfigurationError
from coffre.dev.local_cluster import ClusterShape, LocalCluster
from coffre.node.config import load_node_config

from tests.integration.blocks import LANGUAGES, PAGES, ROOT, Block, blocks_of
from tests.patience import PATIENCE_SECONDS
from tests.runbooks.book import BY_HAND, CHAPTER, OPERATIONS

BIN = Path(sys.executable).parent
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
# At most five. What they show needs another machine, or the network.
NOT_RUN = {
    "CONTRIBUTING.md": "a clone from wherever you have it; make test-fresh does the rest in a minimal Debian",
    "docs/operations.md": "pip fetches packages from the network",
    "docs/recovery.md": "pip fetches packages from the network",
}
FRESH = runpy.run_path(str(ROOT / "tests/fresh/run.py"))["commands_of_readme"]()
OPERATIONS_PAGE = OPERATIONS.relative_to(ROOT).as_posix()
COMMAND = re.compile(r"`(?:\.venv/bin/)?coffre ([^`]+)`")


def elsewhere(block: Block) -> bool:
    """Whether it is run by another test."""
    if block.page == OPERATIONS_PAGE and f"## {block.chapter}\n" in (CHAPTER, BY_HAND):
        return True
    return block.page == "README.md" and set(block.text.splitlines()) <= set(FRESH)


HERE = [block for block in BLOCKS if block.is_run and not elsewhere(block)]
SHELL = [block for block in HERE if block.language in {"sh", "console"} and block.page != "docs/recovery.md"]


def place(block: Block) -> str:
    return block.place


# ------------------------------------------------------------------ which blocks there are


def test_every_block_says_what_it_is() -> None:
    assert [block.place for block in BLOCKS if block.language not in LANGUAGES] == []
    assert [block.place for block in BLOCKS if block.mark not in ("", "no-run")] == []
    command = re.compile(r"^\s*(\$ |coffre |make |python3? |pip |from \w+ import |import )", re.M)
    drawn = [block for block in BLOCKS if block.language == "text"]
    assert [block.place for block in drawn if command.search(block.text)] == [], "no drawing"


def test_few_blocks_are_not_run_and_each_has_its_reason() -> None:
    not_run = [block.page for block in BLOCKS if not block.is_run]
    assert len(not_run) <= 5
    assert sorted(not_run) == sorted(NOT_RUN)


def test_somebody_runs_what_is_not_run_here() -> None:
    """README's plain commands, all of them, in a minimal Debian; the other chapters have their tests."""
    lines = {
        line
        for block in BLOCKS
        if block.page == "README.md" and elsewhere(block)
        for line in block.text.splitlines()
    }
    assert lines == set(FRESH)


# ------------------------------------------------------------------ shell


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """As `coffre dev` makes it, with a record of the demo."""
    cluster = LocalCluster.create(tmp_path_factory.mktemp("demo") / "cluster", ClusterShape())

    async def begin() -> None:
        await cluster.start()
        async with await connect(cluster.client_config()) as client:
            await client.put("records", "fhir/patient-1.json", b"{}")

    try:
        asyncio.run(begin())
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout of somebody's application."""
    home = tmp_path_factory.mktemp("application")
    (home / "tests").mkdir()
    (home / "tests/test_theirs.py").write_text("def test_nothing() -> None: ...\n")
    (home / "bin").mkdir()
    return home


@pytest.fixture(scope="module")
def stage(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout, as far as the pages see it, in which a demo runs."""
    home = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "README.md", home)
    (home / "archive.tar").write_bytes(os.urandom(3_000_000))
    (home / ".venv").symlink_to(sys.prefix)
    (home / ".coffre").symlink_to(cluster.directory)
    (home / "bin").mkdir()
    wrapper = f'#!/bin/sh\nexec {shutil.which("make")} -C {ROOT} -o setup VENV={sys.prefix} "$@"\n'
    (home / "bin/make").write_text(wrapper)
    (home / "bin/make").chmod(0o755)
    return home


def environment(stage: Path) -> dict[str, str]:
    """As somebody has it who types this: nothing of what this run was asked for, by make or otherwise."""
    asked = re.compile(r"(COFFRE_|MAKE|PYTEST).*|MFLAGS|ARGS|SEEDS?|WORKERS|VENV|PYTHON|WITHOUT_KERNEL")
    own = {name: value for name, value in os.environ.items() if not asked.fullmatch(name)}
    return {
        **own,
        "PATH": f"{stage / 'bin'}:{BIN}:{os.environ['PATH']}",
        "HOME": str(stage),
        "COLUMNS": "120",
    }


def same(expected: str, seen: str) -> bool:
    """`...` stands for anything, as in doctest."""
    return doctest.OutputChecker().check_output(expected, seen, doctest.ELLIPSIS)


@pytest.mark.parametrize("block", [block for block in SHELL if block.language == "sh"], ids=place)
def test_shell(block: Block, stage: Path, application: Path) -> None:
    home = application if block.page == "docs/testing.md" else stage
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=home,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if block.output is not None:
        assert same(block.output, done.stdout), done.stdout


@pytest.mark.parametrize("block", [block for block in SHELL if block.language == "console"], ids=place)
def test_what_stays_on_the_terminal(block: Block, tmp_path: Path) -> None:
    """One command, and its output until now; Ctrl-C ends it well. Where the reader's home is, this test's folder is."""
    prompt, _, expected = block.text.partition("\n")
    started = subprocess.Popen(
        ["bash", "-c", f"exec {prompt.removeprefix('$ ')}"],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    try:
        seen = [started.stdout.readline() for _ in expected.splitlines()]
    finally:
        started.send_signal(signal.SIGINT)
        status = started.wait(timeout=PATIENCE_SECONDS)
        started.stdout.close()
    assert same(expected, "".join(seen).replace(str(tmp_path), "/home/somebody")), "".join(seen)
    assert status == 0


# ------------------------------------------------------------------ Python

# Runs the blocks of a page one after the other, in one namespace, as in a session that has an event loop.
DRIVER = """
import ast, asyncio, contextlib, inspect, io, json, sys

outputs, names = [], {"__name__": "__main__"}
with asyncio.Runner() as runner:
    for place, text in json.load(sys.stdin):
        code = compile("\\n" * (int(place.rpartition(":")[2])) + text, place.rpartition(":")[0], "exec",
                       flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            if code.co_flags & inspect.CO_COROUTINE:
                async def run():
                    await eval(code, names)
                runner.run(run())
            else:
                eval(code, names)
        outputs.append(said.getvalue())
print(json.dumps(outputs))
"""
PYTHON = [block for block in HERE if block.language == "python"]
PYTHON_PAGES = sorted({block.page for block in PYTHON})


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_python(page: str, stage: Path) -> None:
    blocks = [block for block in PYTHON if block.page == page]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DRIVER],
        input=json.dumps([(block.place, block.text) for block in blocks]),
        cwd=stage,
        env=environment(stage),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for block, seen in zip(blocks, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert same(block.output or "", seen), f"{block.place} printed {seen!r}"


def module_of(page: str) -> str:
    """The blocks of a page as one module; what awaits is in functions, for which a type checker looks."""
    parts = []
    for number, block in enumerate(each for each in PYTHON if each.page == page):
        code = compile(block.text, block.place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            parts.append(f"async def part_{number}() -> None:\n{textwrap.indent(block.text, '    ')}")
        else:
            parts.append(block.text)
    return "\n".join(parts)


@pytest.mark.long
def test_python_is_typed(tmp_path: Path) -> None:
    """An application under `mypy --strict` may paste it."""
    for page in PYTHON_PAGES:
        (tmp_path / (re.sub(r"\W", "_", page) + ".py")).write_text(module_of(page))
    settings = tmp_path / "mypy.ini"
    settings.write_text("[mypy]\nstrict = true\n[mypy-zfec.*]\nignore_missing_imports = true\n")
    command = [sys.executable, "-m", "mypy", "--config-file", str(settings), *map(str, tmp_path.glob("*.py"))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout


# ------------------------------------------------------------------ settings


def all_settings(text: str) -> str:
    """With those that a page shows as comments, too: `# name = value`."""
    return re.sub(r"^# ?(\w+ = )", r"\1", text, flags=re.M)


def loaded(block: Block, before: str, home: Path) -> str:
    """Load a block, after what it adds to; which kind of file it is."""
    path = home / "settings.toml"
    path.write_text(all_settings(block.text))
    table = tomllib.loads(block.text)
    if "keyring" in table:
        load_client_config(path)
        return "client"
    if "certificate" in table:
        with pytest.raises(ConfigurationError, match=r"cannot read \S*cluster.map"):  # all else is well
            load_operator_config(path)
        return "operator"
    path.write_text(all_settings(before + block.text))
    load_node_config(path)
    return "node"


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.language == "toml"}))
def test_settings(page: str, tmp_path: Path) -> None:
    """A block that is a part of node.toml belongs to the whole one before it on its page."""
    node = ""
    for block in (block for block in BLOCKS if block.page == page and block.language == "toml"):
        if (
            loaded(block, "" if "listen" in tomllib.loads(block.text) else node, tmp_path) == "node"
            and not node
        ):
            node = block.text


# ------------------------------------------------------------------ commands that are only named


def named() -> Iterator[tuple[str, str]]:
    """Every `coffre ...` in the text of a page, and in blocks of the bench's page, which take minutes each."""
    for page in (*PAGES, ROOT / "bench" / "README.md"):
        where = page.relative_to(ROOT).as_posix()
        if where.startswith("docs/formats/"):
            continue  # names of keys and signatures begin so there
        for command in COMMAND.findall(page.read_text("utf-8")):
            yield where, command
    for block in blocks_of(ROOT / "bench" / "README.md"):
        for line in block.text.splitlines():
            if line.startswith("coffre "):
                yield block.page, line.partition("#")[0].removeprefix("coffre ")


def unknown_in(words: list[str]) -> str | None:
    """The first word that the command line does not know: a command, or an option of one."""
    command: click.Command = tree
    context = click.Context(command)
    for word in words:
        if isinstance(command, click.Group) and not word.startswith("-"):
            for name in word.split("|"):
                if command.get_command(context, name) is None:
                    return name
            command = command.get_command(context, word.partition("|")[0]) or command
        elif word.startswith("--"):
            known = {
                option
                for each in command.get_params(context)
                for option in (*each.opts, *each.secondary_opts)
            }
            if word.partition("=")[0] not in known | {"--help"}:
                return word
    return None


def test_commands_that_the_text_names_exist() -> None:
    wrong = {}
    for where, command in named():
        if command.endswith("\\0"):
            continue  # what a hash begins with
        words = re.sub(r"[\[\]()]|\.\.\.|#.*", " ", command).replace(" | ", "|").split()
        if unknown := unknown_in([word for word in words if not re.fullmatch(r"[A-Z_]+", word)]):
            wrong[f"{where}: {command}"] = unknown
    assert wrong == {}


def test_targets_that_the_text_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for page in (*PAGES, ROOT / "bench" / "README.md"):
        for target in re.findall(r"(?:`|^|; )make ([a-z-]+)", page.read_text("utf-8"), re.M):
            assert target in targets, f"{page.name}: make {target}"


def test_links_lead_somewhere() -> None:
    for page in (*PAGES, ROOT / "bench" / "README.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


# ------------------------------------------------------------------ recovery


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory) -> LocalCluster:
    """What is left when nobody runs any more."""
    cluster = LocalCluster.create(tmp_path_factory.mktemp("dead") / "cluster", ClusterShape())

    async def life() -> None:
        async with cluster, await connect(cluster.client_config()) as client:
            await client.put("records", "one", b"1")
            await client.flush()

    asyncio.run(life())
    return cluster


def test_recovery(dead: LocalCluster, tmp_path: Path) -> None:
    """The medium with the script, disks at /rescue, and the environment of the page's step before."""
    for name in ("recover.py", "dictionary-1.txt"):
        shutil.copy(ROOT / "docs/recovery" / name, tmp_path)
    shutil.copy(dead.directory / "keyring.json", tmp_path)
    (tmp_path / "rescue").symlink_to(sys.prefix)
    disks = tmp_path / "disks"
    disks.mkdir()
    for number, name in enumerate(("a1", "a2", "b1", "b2"), 1):
        (disks / name).symlink_to(dead.data(number))
    secret = {"COFFRE_KEYRING_PASSPHRASE": (dead.directory / "passphrase").read_text().strip()}
    blocks = [block for block in HERE if block.page == "docs/recovery.md"]
    assert len(blocks) >= 2
    for block in blocks:
        script = re.sub(r"(?<= )/rescue/", f"{disks}/", block.text).replace("/safe/", f"{tmp_path}/safe/")
        command = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, **secret},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert "one" in (tmp_path / "found.jsonl").read_text()
    assert [
        path.read_bytes() for path in (tmp_path / "safe").rglob("*") if path.is_file() and path.suffix == ""
    ] == [b"1"]
