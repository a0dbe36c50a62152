"""Deliberate bugs of the protocol: each must break a promise that a run checks, within a bounded number of seeds.

A mutant is a piece of source text and what stands in its place (bugs_of_clients.py, bugs_of_nodes.py); it is applied in
a process of its own. When the text is not there any more, the mutant is broken and says so.
`python -m tests.simulation.mutants` runs them.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import logging
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.abc import SourceLoader
from importlib.machinery import ModuleSpec
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

from tests.simulation import bugs, bugs_of_clients, bugs_of_nodes
from tests.simulation.bugs import Edit, Mutant

__all__ = ["MUTANTS", "Verdict", "apply", "hunt", "main"]

SEEDS_MAX = 400
MUTANTS = (*bugs_of_clients.BUGS, *bugs_of_nodes.BUGS)
_KEPT = {__name__, bugs.__name__, bugs_of_clients.__name__, bugs_of_nodes.__name__}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What caught a mutant, and what it said; nothing when it passed all that was tried."""

    mutant: Mutant
    caught_by: str
    tried: int
    failure: str = ""

    def __str__(self) -> str:
        what = f"caught by {self.caught_by}" if self.caught_by else "SURVIVED"
        first = self.failure.splitlines()[0] if self.failure else ""
        return f"{self.mutant.name:34} {what:22} after {self.tried:3}  {first[:110]}"


class _Loader(SourceLoader):
    """Loads one module from its file, with pieces of the text changed."""

    def __init__(self, edits: Sequence[Edit], path: Path) -> None:
        self._edits = edits
        self._path = path

    def get_filename(self, fullname: str) -> str:
        return str(self._path)

    def get_data(self, path: str | bytes) -> bytes:
        source = self._path.read_text("utf-8")
        for edit in self._edits:
            if source.count(edit.text) != 1:
                raise ValueError(f"a mutant's text is {source.count(edit.text)} times in {edit.module}")
            source = source.replace(edit.text, edit.instead)
        return source.encode()


class _Finder:
    """Finds the changed module before anybody else does."""

    def __init__(self, module: str, edits: Sequence[Edit], spec: ModuleSpec) -> None:
        self._module = module
        self._edits = edits
        self._spec = spec

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._module or self._spec.origin is None:
            return None
        return importlib.util.spec_from_loader(name, _Loader(self._edits, Path(self._spec.origin)))


def apply(mutant: Mutant) -> None:
    """Let every import from now on find the mutant. To be called in a process that has not imported the product yet."""
    found = {edit.module: importlib.util.find_spec(edit.module) for edit in mutant.edits}
    for name in [name for name in sys.modules if name.partition(".")[0] in ("coffre", "tests")]:
        if name not in _KEPT:
            del sys.modules[name]
    for module, room in found.items():
        assert room is not None, module
        edits = [edit for edit in mutant.edits if edit.module == module]
        sys.meta_path.insert(0, _Finder(module, edits, room))


def hunt(mutant: Mutant, seeds_max: int | None = None) -> Verdict:
    """Try a mutant in its story, or its unit test, or run seeds on it until one fails; seeds alone with `seeds_max`. To
    be called in a process that has not imported the product yet."""
    apply(mutant)
    logging.disable(logging.CRITICAL)
    if seeds_max is None and mutant.story:
        return _hunt_in_story(mutant)
    if seeds_max is None and mutant.unit:
        return _hunt_in_unit(mutant)
    run: Callable[[int], object] = importlib.import_module("tests.simulation.run").run_seed
    draw: Callable[[int], object] = importlib.import_module("tests.simulation.plan").draw_plan
    seeds = [mutant.seed, *(seed for seed in range(seeds_max or SEEDS_MAX) if seed != mutant.seed)]
    if mutant.changing:
        seeds = [seed for seed in seeds if draw(seed).changes is not None]  # type: ignore[attr-defined]
    for tried, seed in enumerate(seeds, 1):
        failures: tuple[str, ...] = run(seed).failures  # type: ignore[attr-defined]  # a Result, loaded just now
        if failures:
            return Verdict(mutant, f"seed {seed}", tried, failures[0])
    return Verdict(mutant, "", len(seeds))


def _hunt_in_story(mutant: Mutant) -> Verdict:
    stories = importlib.import_module("tests.simulation.stories")
    failures: tuple[str, ...] = stories.tell(mutant.story, mutant.seed).failures
    if not failures or any(failure.startswith(stories.NOT_TOLD) for failure in failures):
        return Verdict(mutant, "", 1, "".join(failures[:1]))
    return Verdict(mutant, f"seed {mutant.seed} of {mutant.story!r}", 1, failures[0])


def _hunt_in_unit(mutant: Mutant) -> Verdict:
    import pytest

    with redirect_stdout(io.StringIO()):
        status = pytest.main(["-q", "-p", "no:cacheprovider", mutant.unit])
    caught = status == pytest.ExitCode.TESTS_FAILED
    return Verdict(mutant, mutant.unit.rpartition("/")[2] if caught else "", 1)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.simulation.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; none: all of them")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--seeds",
        type=int,
        help=f"how many seeds a mutant may pass, whatever else shows it; else {SEEDS_MAX}",
    )
    options = parser.parse_args(arguments)
    chosen = [m for m in MUTANTS if not options.names or any(part in m.name for part in options.names)]
    survivors, begun = 0, time.monotonic()
    context = get_context("spawn")  # every mutant needs a process that knows nothing yet
    with ProcessPoolExecutor(options.workers, mp_context=context, max_tasks_per_child=1) as pool:
        for done in as_completed([pool.submit(hunt, mutant, options.seeds) for mutant in chosen]):
            verdict = done.result()
            print(verdict, flush=True)
            survivors += not verdict.caught_by
    print(f"{len(chosen)} mutants in {time.monotonic() - begun:.0f} s, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
