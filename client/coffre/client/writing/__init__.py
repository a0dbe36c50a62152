"""The writer's half of the register protocol (docs/consistency.md): stamps, rounds of Accepts, shards on their way.

It decides when a version is established, and when it is given up for good.
May import: sealing, nodes.
"""

from coffre.client.writing._stamps import Issuer
from coffre.client.writing._upload import CellCoder, SegmentCoder, Uploader, code_whole
from coffre.client.writing._writes import Fate, Shards, Verify, Writer

__all__ = [
    "CellCoder",
    "Fate",
    "Issuer",
    "SegmentCoder",
    "Shards",
    "Uploader",
    "Verify",
    "Writer",
    "code_whole",
]
