"""What nodes may not read or forge: sealed manifests, data keys, compressed and encrypted segments, cells.

It decides how plaintext becomes cells and comes back. It knows no node and no protocol.
May import: nothing of the other rooms.
"""

from coffre.client.sealing._cell_cipher import CellCipher, Parts, cipher_of
from coffre.client.sealing._cells import CellSet, open_segment, rebuild_cells
from coffre.client.sealing._memory import MessageMemory
from coffre.client.sealing._sealing import Draft, OpenManifest, Sealer, SegmentCipher, segment_count

__all__ = [
    "CellCipher",
    "CellSet",
    "Draft",
    "MessageMemory",
    "OpenManifest",
    "Parts",
    "Sealer",
    "SegmentCipher",
    "cipher_of",
    "open_segment",
    "rebuild_cells",
    "segment_count",
]
