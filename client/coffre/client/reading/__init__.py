"""The reader's half of the register protocol (docs/consistency.md): evidence, completion, lists, downloads.

It decides which version an object has, and which bytes are good.
May import: sealing, nodes, writing.
"""

from coffre.client.reading._download import Downloader
from coffre.client.reading._found import Found
from coffre.client.reading._listing import Lister, parse_token
from coffre.client.reading._lookup import Lookup
from coffre.client.reading._ranges import RangeReader, short_range
from coffre.client.reading._reads import Reader

__all__ = [
    "Downloader",
    "Found",
    "Lister",
    "Lookup",
    "RangeReader",
    "Reader",
    "parse_token",
    "short_range",
]
