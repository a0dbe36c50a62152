"""Seeds that show a bug of the product which is known and not mended yet. They are run by hand alone.

`SPLIT`: half of the votes about a version that its dead writer left are LOCKED, the others ABORTED, and the node that
was lost for good cast the one that decides. Nobody can say any more whether the version stands, so the object cannot be
read, and the move does not end, until somebody writes the object again.

`TWICE`: two primaries keep the same shard of a version, and a node keeps the missing one for others, for ever.

`BEHIND`: coordination lost its store just after a map was published, and only the operator's file has that map.
`restore-coordination` refuses, since what nodes have is older.
"""

from __future__ import annotations

__all__ = ["SET_ASIDE"]

SPLIT = {371}
TWICE = {1025}
BEHIND = {1034}
SET_ASIDE = frozenset(SPLIT | TWICE | BEHIND)
