"""Deliberate bugs of the protocol: each must break a promise that a run checks, within a bounded number of seeds.

A mutant is a piece of source text and what stands in its place; it is applied to one module in a process of its own.
When the text is not there any more, the mutant is broken and says so. `python -m tests.simulation.mutants` runs them.
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

__all__ = ["MUTANTS", "Mutant", "Verdict", "hunt", "main"]

SEEDS_MAX = 400


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


COUNTING = Edit(  # repair counts what nodes do not hold whose clocks are wrong
    "coffre.node.repair.view",
    "        return self.answers.keys() & (self.punctual | {self.me})\n",
    "        return self.answers.keys()\n",
)
SLOW = Edit(  # a node acknowledges what it had in time, however old that is when it is durable
    "coffre.node.serving.times",
    "        return min(unixtime_ms_of(stamp) + STAMP_AGE_MS_MAX, sent_ms + MESSAGE_AGE_MS_MAX)\n",
    "        return sent_ms + MESSAGE_AGE_MS_MAX\n",
)

MUTANTS = (
    Mutant(
        "majority minus one",
        "coffre.client.writing._rounds",
        "return self.electorate.is_established_by(self._holders)",
        "return len(self.electorate.everyone & self._holders) >= self.electorate.write - 1",
        19,
    ),
    Mutant(
        "a list takes silence for nothing",
        "coffre.client.reading._listing",
        "if found is not None and silent and not found.opened.tombstone:",
        "if False:",
        1,
        quick=True,
    ),
    Mutant(
        "one answer too few for a read",
        "coffre.cluster.map.electorate",
        "return len(self.nodes) - self.write + 1",
        "return len(self.nodes) - self.write",
        2,
        quick=True,
    ),
    Mutant(
        "read without completing",
        "coffre.client.reading._reads",
        "            if aborted:\n"
        "                await self._complete_against_votes(view, name, found, replies, beyond, others, began)\n"
        "            else:\n"
        "                await self._completer.complete(view, name, found, replies, beyond, began)\n",
        "",
        9,
        quick=True,
    ),
    Mutant(
        "believe what is merely accepted",
        "coffre.client.reading._reads",
        "v.stamp == stamp and v.state == pb.STATE_SETTLED\n",
        "v.stamp == stamp and v.state != pb.STATE_ABORTED\n",
        5,
        quick=True,
    ),
    Mutant(
        "a stamp below the newest is taken",
        "coffre.node.store.votes",
        "if newer and (not lock or any(entry.state == SETTLED for entry in newer)):",
        "if newer and lock and any(entry.state == SETTLED for entry in newer):",
        3,
        quick=True,
    ),
    Mutant(
        "a failed shard counts",
        "coffre.client.writing._rounds",
        "        self._said[node] |= _REFUSED if isinstance(error, PLAIN_REFUSALS) else _AMBIGUOUS\n",
        "        self._said[node] |= _REFUSED if isinstance(error, PLAIN_REFUSALS) else _AMBIGUOUS\n"
        "        self._shards |= 1 << (shard_index or 0)\n",
        0,
        story="one of those who took it was lost",
    ),
    Mutant(
        "a list believes R - 1 answers",
        "coffre.client.reading._listing",
        "    spare = [len(electorate.primaries) - electorate.read for electorate in electorates]\n",
        "    spare = [len(electorate.primaries) - electorate.read + 1 for electorate in electorates]\n",
        269,
    ),
    Mutant(
        "a list skips what is not settled",
        "coffre.client.reading._listing",
        "        found = await self._reader.resolve(name)\n        return found.opened if found else None",
        "        return None",
        1,
        quick=True,
    ),
    Mutant(
        "acknowledge before the sync",
        "coffre.node.memory.store",
        "if any(not isinstance(mutation, (Settle, Mark)) for mutation in mutations):\n            self._sync()",
        "if any(isinstance(mutation, Abort) for mutation in mutations):\n            self._sync()",
        2,
        quick=True,
    ),
    Mutant(
        "a mark passes over what is under way",
        "coffre.client.writing._stamps",
        "            if first.settle is None:\n",
        "            if first.settle is None and len(self._open) == 1:\n",
        151,
    ),
    Mutant(
        "a mark passes over what was given up",
        "coffre.client.writing._stamps",
        "        self._hybrid.renew(self._new_writer())\n\n    def _retire",
        "\n    def _retire",
        12,
    ),
    Mutant(
        "settled before it is established",
        "coffre.client.writing._writes",
        "        round_ = await self._accept(view, draft, shards, stamp)\n",
        "        round_ = await self._accept(view, draft, shards, stamp)\n"
        "        self.settle(draft.name, stamp, shards)\n",
        12,
        quick=True,
    ),
    Mutant(
        "a tombstone is dropped early",
        "coffre.node.store.votes",
        "    kept, freed = _trim(_put(entries, place, entry), max(versions_kept, 1))",
        "    kept, freed = _trim(_put(entries, place, entry), max(versions_kept, 1))\n"
        "    if entry.tombstone and len(kept) == 1:\n"
        "        return Verdict((), changed=True, freed=(*freed, present), state=SETTLED)",
        1,
        quick=True,
    ),
    Mutant(
        "an acknowledged version is skipped",
        "coffre.client.reading._evidence",
        "if not electorate.may_be_established(silent.union(holders)):",
        "if not electorate.may_be_established(holders):",
        17,
        quick=True,
    ),
    Mutant(
        "a vote to keep is not final",
        "coffre.node.store.votes",
        "        return Verdict(entries, state=LOCKED)\n    if present.state != ACCEPTED:\n",
        "        return Verdict(entries, state=LOCKED)\n    if present.state not in (ACCEPTED, LOCKED):\n",
        28,
        quick=True,
    ),
    Mutant(
        "votes are forgotten with versions",
        "coffre.node.store.votes",
        "if _was_locked(entry) and votes < VOTES_KEPT:",
        "if False:",
        5,
    ),
    Mutant(
        "give up after the acknowledgement",
        "coffre.client.writing._writes",
        "                self._established(view, draft.name, stamp, shards, round_)\n                return True",
        "                await self.give_up(draft.name, stamp, round_.electorate.everyone, k=1, elsewhere=None)\n"
        "                self._established(view, draft.name, stamp, shards, round_)\n                return True",
        0,
        quick=True,
    ),
    Mutant(
        "nothing is given up",
        "coffre.client.writing._writes",
        "        fate = await self.give_up(\n"
        "            draft.name,\n"
        "            stamp,\n"
        "            holders,\n"
        "            k=draft.manifest.k,\n"
        "            elsewhere=elsewhere,\n"
        "            begun=None if round_.comes_late else view.electorate(draft.name),\n"
        "            every=staged,\n"
        "        )\n",
        "        fate = Fate.DEAD\n",
        5,
        quick=True,
    ),
    Mutant(
        "caps of the policy are forgotten",
        "coffre.cluster.map.placement",
        "    return tuple(caps)\n",
        "    return ()\n",
        2,
        quick=True,
    ),
    Mutant(
        "a condition is checked before the lock alone",
        "coffre.client.puts._conditions",
        "                draft.manifest.base = await self._decide(draft.name, condition, thorough=refused)\n",
        "                found = await self._lookup.patiently(lambda: self._reader.resolve(draft.name))\n"
        "                draft.manifest.base = found.opened.stamp.to_bytes() if found else b''\n",
        0,
        quick=True,
    ),
    Mutant(
        "a condition ignores tombstones",
        "coffre.client.puts._conditions",
        "        if self.version is not None and not (live and self._is_met(newest)):\n",
        "        if self.version is not None and not self._is_met(newest):\n",
        220,
    ),
    Mutant(
        "a conditional write needs no lock",
        "coffre.client.puts._conditions",
        "            lock = await stack.enter_async_context(self._locks.hold(draft.name, self._lock_patience))\n",
        "            from unittest.mock import Mock\n            lock = Mock()\n",
        0,
        quick=True,
    ),
    Mutant(
        "the lock is not held over the write",
        "coffre.cluster.coordination.locks",
        "                    yield LockHeld(token, self._session, lease)\n",
        "                    await self._release(claim)\n"
        "                    yield LockHeld(token, self._session, lease)\n",
        1,
        quick=True,
    ),
    Mutant(
        "the lock is taken out of turn",
        "coffre.cluster.coordination.locks",
        "            if not before:\n",
        "            if True:\n",
        1,
        quick=True,
    ),
    Mutant(
        "nodes do not look at the base",
        "coffre.node.store.votes",
        "    if proposal.conditional and any(entry.stamp > base for entry in entries if entry.state != ABORTED):\n",
        "    if False:\n",
        9,
        quick=True,
    ),
    Mutant(
        "nodes leave conditional writes to the lock",
        "coffre.node.store.votes",
        "(entry.stamp > base for entry in entries if entry.state != ABORTED)",
        "(entry.stamp > base for entry in entries if entry.state != ABORTED and not entry.conditional)",
        114,
    ),
    Mutant(
        "a base ignores what is not settled",
        "coffre.node.store.votes",
        "(entry.stamp > base for entry in entries if entry.state != ABORTED)",
        "(entry.stamp > base for entry in entries if entry.state == SETTLED)",
        0,
        story="a plain put came between",
    ),
    Mutant(
        "repair takes accepted for established",
        "coffre.node.repair.view",
        "if version.state >= LOCKED}",
        "if version.state != ABORTED}",
        0,
        story="a writer gave up during a walk",
    ),
    Mutant(
        "repair gives several nodes one shard",
        "coffre.node.repair.decide",
        "    return chosen.get(me)\n",
        "    return free[0] if me in chosen else None\n",
        44,
        unit="tests/unit/node/repair/test_decide.py::test_primaries_without_a_shard_take_the_free_ones_in_order",
    ),
    Mutant(
        "digests leave out what is old",
        "coffre.node.repair.repairer",
        "self._clock.unixtime_ms() - int(self._options.settling_seconds * 1000))",
        "self._clock.unixtime_ms() - (1 << 40))",
        12,
        quick=True,
    ),
    Mutant(
        "what is held for others goes before the primary has it",
        "coffre.node.repair.handoff",
        "        if await _all_safe(scene, options, row.name, view, said) or await _is_over(scene, row.name, view):\n",
        "        if True:\n",
        0,
        story="substitutes looked too early",
    ),
    Mutant(
        "what dead writers left stays",
        "coffre.node.repair.sweep",
        "    if any(v.state != SETTLED and not old_ms < unixtime_ms_of(v.stamp) <= ahead_ms for v in held):\n",
        "    if False:\n",
        33,
    ),
    Mutant(
        "a read hears the new primaries alone",
        "coffre.cluster.map.electorate",
        "return all(len(voters.intersection(nodes)) >= read for voters, _, read in self._bars)",
        "return all(len(voters.intersection(nodes)) >= read for voters, _, read in self._bars[:1])",
        54,
        changing=True,
        unit="tests/unit/cluster/map/test_electorate.py::test_a_moving_partition_needs_both_sets",
    ),
    Mutant(
        "a write is on a majority of the new primaries alone",
        "coffre.cluster.map.electorate",
        "return all(len(voters.intersection(nodes)) >= write for voters, write, _ in self._bars)",
        "return all(len(voters.intersection(nodes)) >= write for voters, write, _ in self._bars[:1])",
        253,
        changing=True,
        unit="tests/unit/client/test_moving.py::test_a_put_that_misses_the_majority_of_an_older_set_fails",
    ),
    Mutant(
        "primaries of before are not consulted",
        "coffre.cluster.map.electorate",
        "        self._maps = (cluster_map, *cluster_map.prior)\n",
        "        self._maps = (cluster_map,)\n",
        80,
        changing=True,
    ),
    Mutant(
        "a node reports what it does not have yet as moved",
        "coffre.node.repair.repairer",
        "d.partition for d in found if d.complete and not d.pending and d.partition not in self._failed",
        "d.partition for d in found if d.complete",
        80,
        changing=True,
    ),
    Mutant(
        "a move is ended before all has moved",
        "coffre.cluster.membership.changes",
        "            if move.is_finished(found):\n",
        "            if True:\n",
        80,
        changing=True,
    ),
    Mutant(
        "a node serves every epoch",
        "coffre.node.serving.handler",
        "        if epoch != self._maps.map.epoch:\n            raise self._stale(epoch)\n",
        "",
        19,
        changing=True,
        unit="tests/unit/node/following/test_following.py::test_at_another_epoch_only_a_vote_to_give_up_is_taken",
    ),
    Mutant(
        "an epoch begins before the disk is done with the last one",
        "coffre.node.following.epochs",
        "            await self._store.drain()\n",
        "",
        63,
        changing=True,
    ),
    Mutant(
        "age by one clock alone",
        "coffre.node.following.clocks",
        "        return self.clock.unixtime_ms() if self._agrees and not self._has_jumped() else None\n",
        "        return self.clock.unixtime_ms()\n",
        0,
        story="a young deletion",
    ),
    Mutant(
        "a node with a wrong clock takes versions",
        "coffre.node.following.clocks",
        "        return self._barred or self._has_jumped()\n",
        "        return self._has_jumped()\n",
        0,
        story="clocks were wrong",
        also=(COUNTING,),
    ),
    Mutant(
        "nobody notices that a clock jumped",
        "coffre.node.following.clocks",
        "        return self._offset_ms is not None and abs(self._offset() - self._offset_ms) > CLOCKS_APART_MS_MAX\n",
        "        return False\n",
        0,
        story="clocks jumped",
    ),
    Mutant(
        "what a wrong clock lacks it never gets",
        COUNTING.module,
        COUNTING.text,
        COUNTING.instead,
        0,
        story="clocks were not compared",
    ),
    Mutant(
        "a reader gives up what somebody refused",
        "coffre.client.reading._reads",
        "            if electorate.is_dead_by(aborted):\n",
        "            if aborted:\n",
        0,
        story="a writer gave up late",
    ),
    Mutant(
        "an old stamp is as good as a new one",
        "coffre.node.serving.times",
        "        if -ahead_ms > STAMP_AGE_MS_MAX:\n",
        "        if False:\n",
        0,
        story="a writer was suspended",
        also=(SLOW,),
    ),
    Mutant(
        "what was read long ago may be completed",
        "coffre.node.serving.times",
        "            if now_ms - read_ms > MESSAGE_AGE_MS_MAX or read_ms - now_ms > STAMP_AHEAD_MS_MAX:\n",
        "            if False:\n",
        0,
        story="a reader was suspended",
    ),
    Mutant(
        "what is durable too late is acknowledged",
        "coffre.node.serving.times",
        "        if not barred and now_ms <= min(until_ms, default=NEVER_MS):\n",
        "        if True:\n",
        0,
        story="disks hung",
    ),
    Mutant(
        "any stamp moves a clock",
        "coffre.cluster.versions",
        "        return (hlc >> _COUNTER_BITS) - self._clock.unixtime_ms() <= STAMP_AHEAD_MS_MAX",
        "        return True",
        0,
        story="leftovers on most nodes",
    ),
    Mutant(
        "one node may say that a stamp of the future is in the way",
        "coffre.client.writing._rounds",
        "            if future:  # the others may do without this node\n",
        "            if False:\n",
        0,
        story="a leftover in the way",
    ),
    Mutant(
        "a clock that was set back goes on above its stamps",
        "coffre.client.writing._stamps",
        "        if self._hybrid.is_ahead:\n",
        "        if False:\n",
        0,
        story="a writer was ahead",
    ),
    Mutant(
        "leftovers from the future stay",
        "coffre.node.repair.decide",
        "            if own is None and tally.too_few_hold:\n",
        "            if False:\n",
        0,
        story="a leftover of the future",
    ),
    Mutant(
        "digests leave out the future",
        "coffre.node.store.recent",
        "            if unixtime_ms <= number * WINDOW_MS <= now_ms + _AHEAD_MS:\n",
        "            if unixtime_ms <= number * WINDOW_MS:\n",
        0,
        story="a leftover of the future",
    ),
)


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
        if name != __name__:
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
