"""Bugs on purpose of clients, and of what clients and nodes share: quorums, stamps, locks. mutants.py hunts them."""

from __future__ import annotations

from tests.simulation.bugs import Mutant

__all__ = ["BUGS"]

BUGS = (
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
        "an acknowledged version is skipped",
        "coffre.client.reading._evidence",
        "if not electorate.may_be_established(silent.union(holders)):",
        "if not electorate.may_be_established(holders):",
        17,
        quick=True,
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
        "a move is ended before all has moved",
        "coffre.cluster.membership.changes",
        "            if move.is_finished(found):\n",
        "            if True:\n",
        80,
        changing=True,
    ),
    Mutant(
        "a damaged shard was never there",
        "coffre.client.reading._evidence",
        '    unknown = sum(version.damaged and not version.HasField("shard_index") for version in held)\n',
        "    unknown = 0\n",
        0,
        story="a record rotted at once",
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
        "votes of nodes that have forgotten count",
        "coffre.client.writing._writes",
        "        if fate is Fate.DEAD and self._may_be_forgotten(view.electorate(draft.name), stamp, holders):\n",
        "        if False:\n",
        0,
        unit="tests/unit/client/test_long_sleeps.py::test_what_was_read_and_deleted_while_its_writer_slept_is_not_written_again",
    ),
    Mutant(
        "what was read back long ago is there",
        "coffre.client.puts._recoding",
        "        return await self._still_there(opened, shards) if began.is_stale(self._clock) else began\n",
        "        return Began.now(self._clock)\n",
        0,
        unit="tests/unit/client/test_long_sleeps.py::test_what_was_deleted_while_who_codes_it_anew_slept_is_not_there_again",
    ),
)
