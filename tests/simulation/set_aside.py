"""Seeds that show a bug of the product which is known and not mended yet. They are run by hand alone.

`UNDECIDED` (docs/repair.md, "While the map changes"): a version that its dead writer left on few primaries of before is
not decided while the map changes, since shards are not counted then, and a node that is a primary of before alone casts
no vote by itself. So the object cannot be read, or the move does not end, until somebody writes the object again.

`CONDEMNED`: a tombstone that only some primaries had condemned when the map changed. A new primary takes nothing that
anybody has condemned, and nobody else condemns what a primary lacks. So it stays, and digests differ.

`TWICE`: two primaries keep the same shard of a version, and a node keeps the missing one for others, for ever.

`BEHIND`: coordination lost its store just after a map was published, and only the operator's file has that map.
`restore-coordination` refuses, since what nodes have is older.
"""

from __future__ import annotations

__all__ = ["SET_ASIDE"]

UNDECIDED = {43, 177, 371}
CONDEMNED = {2013}
TWICE = {1025}
BEHIND = {1034}
SET_ASIDE = frozenset(UNDECIDED | CONDEMNED | TWICE | BEHIND)
