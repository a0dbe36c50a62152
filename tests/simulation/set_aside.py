"""Seeds that show a bug of the product which is known and not mended yet. They are run by hand alone.

`TWICE`: two primaries keep the same shard of a version, and a node keeps the missing one for others, for ever.
"""

from __future__ import annotations

__all__ = ["SET_ASIDE"]

TWICE = {1025}
SET_ASIDE = frozenset(TWICE)
