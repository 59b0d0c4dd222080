"""Columns of an input whose names differ from the fields they fill (`--columns text=body`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

__all__ = ["AS_IT_IS", "Renaming"]

T = TypeVar("T")


class Renaming:
    """Field -> the column that fills it.

    A renamed column is not available under its own name, and a column with the name of such a field is not read. All other
    columns keep their names. One column may fill several fields.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = columns
        self._hidden = {*columns, *columns.values()}

    def fields(self, column: str) -> list[str]:
        """The names under which a row gets a column; none if it does not get the column."""
        given = [field for field, source in self.columns.items() if source == column]
        return given if column in self._hidden else [column]

    def names(self, columns: Iterable[str]) -> list[str]:
        """The names in a row of an input with these columns."""
        return [field for column in columns for field in self.fields(column)]

    def apply(self, record: Mapping[str, T]) -> dict[str, T]:
        """A record with the names of a row."""
        kept = {name: value for name, value in record.items() if name not in self._hidden}
        return kept | {field: record[column] for field, column in self.columns.items() if column in record}


AS_IT_IS = Renaming(MappingProxyType({}))
