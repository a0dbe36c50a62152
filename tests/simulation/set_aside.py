"""Seeds that show a bug of the product which is known and not mended yet: each says which. They are run by hand alone.

The bug (docs/repair.md, "While the map changes"): a version that its dead writer left on few primaries of before is not
decided while the map changes, since shards are not counted then, and a node that is a primary of before alone casts no
vote by itself. So the object cannot be read, or the move does not end, until somebody writes the object again.
"""

from __future__ import annotations

__all__ = ["SET_ASIDE"]

SET_ASIDE: frozenset[int] = frozenset({43, 177})
