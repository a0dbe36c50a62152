"""The run-books of docs/operations.md: their commands in order, and what the text says that these print."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BY_HAND", "CHAPTER", "OPERATIONS", "Step", "read_books"]

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
CHAPTER = "## What happens when\n"
BY_HAND = "## Start a cluster by hand on three machines\n"
_SAYS = re.compile(
    r"^(?P<repeat>Repeat it until it|It)(?: shows how far it has come, and)? "
    r"(?P<verb>prints|ends with|does not print) (?P<words>`[^`]+`(?P<others>(?:,? (?:or|and) `[^`]+`)*))"
)


@dataclass(frozen=True, slots=True)
class Step:
    """One command line, and what the text after it says of its output."""

    command: str
    words: tuple[str, ...] = ()
    any_of: bool = False  # one of the words is enough
    absent: bool = False  # the words are not there
    repeated: bool = False  # until it is so

    def is_so(self, output: str) -> bool:
        """Whether the command printed what the run-book says."""
        found = [word in output for word in self.words]
        if self.absent:
            return not any(found)
        return any(found) if self.any_of else all(found)


def read_books(text: str) -> dict[str, tuple[Step, ...]]:
    """The steps of each run-book, by its title; those without any command are left out."""
    chapter = text.split(CHAPTER)[1].split("\n## ")[0]
    books: dict[str, tuple[Step, ...]] = {}
    for section in chapter.split("\n### ")[1:]:
        title, _, body = section.partition("\n")
        if steps := _steps(body):
            books[title] = steps
    return books


def _steps(body: str) -> tuple[Step, ...]:
    steps: list[Step] = []
    for paragraph in body.strip().split("\n\n"):
        if paragraph.startswith("    "):
            steps += [Step(line.strip()) for line in paragraph.splitlines()]
        elif said := _SAYS.match(paragraph):
            assert steps, f"what prints this? {paragraph}"
            assert not steps[-1].words, f"what prints this? {paragraph}"
            steps[-1] = Step(
                steps[-1].command,
                tuple(re.findall(r"`([^`]+)`", said["words"])),
                any_of=" or " in said["others"],
                absent=said["verb"] == "does not print",
                repeated=said["repeat"] != "It",
            )
    return tuple(steps)
