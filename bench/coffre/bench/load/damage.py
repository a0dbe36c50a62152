"""The errors that no load may cause: each of them makes the run fail."""

from __future__ import annotations

from coffre.cluster.errors import IntegrityError

__all__ = ["DATA_ERRORS", "Lost", "Resurrected", "WrongBytes"]


class WrongBytes(IntegrityError):
    """Something else came back than was put, and nobody noticed but the load generator."""


class Lost(IntegrityError):
    """An acknowledged object is not there, or not in a listing."""


class Resurrected(IntegrityError):
    """An object is there that was deleted, or whose put was refused."""


# By name, as errors are counted. `IntegrityError` itself is the client's: it found the damage, and the data is gone.
DATA_ERRORS = frozenset(each.__name__ for each in (IntegrityError, WrongBytes, Lost, Resurrected))
