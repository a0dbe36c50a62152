"""What a bug on purpose is: pieces of source text, what stands in their place, and what shows it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Edit", "Mutant"]


@dataclass(frozen=True, slots=True)
class Edit:
    """A piece of text of a module, and what stands in its place."""

    module: str
    text: str
    instead: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """One bug. `seed`: one that showed it, tried first; which one does changes with everything that draws chances.
    `quick`: few seeds show it."""

    name: str
    module: str
    text: str
    instead: str
    seed: int
    quick: bool = False
    changing: bool = False  # only runs whose map changes can show it
    story: str = ""  # that shows it, on the cluster of `seed` (stories.py)
    unit: str = ""  # the test that shows it, where hundreds of seeds do not, and no story
    also: tuple[Edit, ...] = ()  # the second of two guards, each of which is enough

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Every piece of text that is changed."""
        return (Edit(self.module, self.text, self.instead), *self.also)
