"""The exception tree: every class is drawn, exported, permanent or retryable, and every status has one."""

from __future__ import annotations

import grpc
import pytest
from coffre.cluster import errors
from coffre.cluster.errors import CoffreError, PermanentError, RetryableError, error_of_status


def all_classes(base: type[CoffreError] = CoffreError) -> list[type[CoffreError]]:
    return [base, *(found for cls in base.__subclasses__() for found in all_classes(cls))]


@pytest.mark.parametrize("status", [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK])
def test_every_status_is_a_class(status: grpc.StatusCode) -> None:
    error = error_of_status(status.value[0], "why")
    assert isinstance(error, PermanentError | RetryableError)
    assert str(error) == "why"
    if status is not grpc.StatusCode.UNKNOWN:
        assert error.code == status.value[0]


def test_every_class_that_travels_comes_back_as_itself() -> None:
    for cls in all_classes():
        if "code" in vars(cls) and cls.code:
            assert type(error_of_status(cls.code, "")) is cls


def test_every_class_is_drawn_and_exported() -> None:
    """Of those that may cross a room: the bench has some of its own, which never leave it."""
    assert errors.__doc__ is not None
    drawn = errors.__doc__.replace("├", " ").replace("└", " ").replace("─", " ").replace("│", " ").split()
    for cls in all_classes():
        if cls.__module__.startswith("coffre.bench."):
            continue
        assert cls.__name__ in drawn
        assert cls.__name__ in errors.__all__
        assert cls.__doc__


def test_every_leaf_is_permanent_or_retryable_and_not_both() -> None:
    for cls in all_classes():
        if cls is not CoffreError:
            assert issubclass(cls, PermanentError) != issubclass(cls, RetryableError)
