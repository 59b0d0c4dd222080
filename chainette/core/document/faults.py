"""Errors of parts that do not depend on one another: all errors of a file are reported at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from chainette.errors import LoadError, LoadErrors

__all__ = ["Faults"]


class Faults:
    """The errors so far."""

    def __init__(self) -> None:
        self._found: list[LoadError] = []

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Keeps an error of this part, and goes on with the next one."""
        try:
            yield
        except LoadErrors as errors:
            self._found += errors.problems
        except LoadError as error:
            self._found.append(error)

    def end(self) -> None:
        """Raises LoadError if there was any."""
        if len(self._found) > 1:
            raise LoadErrors(self._found)
        if self._found:
            raise self._found[0]
