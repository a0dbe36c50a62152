"""The parts of a client, put together: each stands on the same ground and on the parts above it here."""

from __future__ import annotations

from dataclasses import dataclass

from coffre.client._ground import Ground
from coffre.client.puts import ConditionalWriter, Putter, Recoder
from coffre.client.reading import Downloader, Lister, Lookup, RangeReader, Reader
from coffre.client.writing import Issuer, Uploader, Writer
from coffre.cluster.coordination import KeyLocks

__all__ = ["Parts", "assemble"]


@dataclass(frozen=True)
class Parts:
    """What the methods of `AsyncClient` call."""

    writer: Writer
    reader: Reader
    lookup: Lookup
    lister: Lister
    ranges: RangeReader
    conditional: ConditionalWriter
    putter: Putter
    recoder: Recoder


def assemble(ground: Ground, issuer: Issuer, locks: KeyLocks | None) -> Parts:
    """`issuer`: of this client's stamps. `locks`: for conditional writes and recoding; None without coordination."""
    writer = Writer(ground, issuer)
    reader = Reader(ground, writer)
    lookup = Lookup(ground, reader)
    lister = Lister(ground, reader)
    downloader = Downloader(ground, reader)
    conditional = ConditionalWriter(ground, writer, reader, lookup, locks)
    putter = Putter(ground, writer, conditional, Uploader(ground), reader)
    recoder = Recoder(ground, reader, lookup, lister, downloader, putter, locks)
    return Parts(writer, reader, lookup, lister, RangeReader(downloader), conditional, putter, recoder)
