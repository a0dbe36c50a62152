"""The code blocks of README and docs: where they are, in which language, and what they are said to print.

A block is fenced, or indented by four spaces after an empty line; an indented one is shell. A fenced one names its
language:

    python, sh, toml      run, or loaded, by test_code_blocks.py; chapters of docs/operations.md by tests/runbooks
    console               sh with a prompt, `$ `, and the output below it
    output                what the block before it prints
    text                  a drawing or a formula: nothing to run

`no-run` after the language marks one that is not run; NOT_RUN in test_code_blocks.py lists them.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["LANGUAGES", "PAGES", "ROOT", "Block", "blocks_of"]

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
LANGUAGES = frozenset({"python", "sh", "toml", "console", "text"})
_FENCE = re.compile(r"^ *```(?P<language>[a-z]*) ?(?P<mark>.*)$")  # indented within a list


@dataclass(frozen=True, slots=True)
class Block:
    """One block. `output`: of the block right after it, None without one. `line` counts from 1."""

    page: str
    line: int
    chapter: str  # the heading of the second level above it
    language: str
    mark: str
    text: str
    output: str | None = None

    @property
    def place(self) -> str:
        """Where it is, as an editor opens it."""
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether nothing says that it is not."""
        return self.mark != "no-run"


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page, in order; an `output` belongs to the block before it."""
    found: list[Block] = []
    for block in _read(page.relative_to(ROOT).as_posix(), page.read_text("utf-8").split("\n")):
        if block.language == "output":
            assert found, f"{block.place}: the output of what?"
            found[-1] = replace(found[-1], output=block.text)
        else:
            found.append(block)
    return found


def _read(page: str, lines: list[str]) -> Iterator[Block]:
    number, chapter = 0, ""
    while number < len(lines):
        line, begin = lines[number], number
        if line.startswith("## "):
            chapter = line[3:]
        if fence := _FENCE.match(line):
            number = next(each for each in range(begin + 1, len(lines)) if lines[each].strip() == "```")
            text = textwrap.dedent("\n".join(lines[begin + 1 : number])) + "\n"
            yield Block(page, begin + 1, chapter, fence["language"], fence["mark"], text)
        elif line.startswith("    ") and (not number or not lines[number - 1]):
            while number + 1 < len(lines) and lines[number + 1].startswith("    "):
                number += 1
            text = "\n".join(each.strip() for each in lines[begin : number + 1]) + "\n"
            yield Block(page, begin + 1, chapter, "sh", "", text)
        number += 1
