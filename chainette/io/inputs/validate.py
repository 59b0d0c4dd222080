"""Makes rows from records of the input: validates them with the chain's input model, dumps them, and takes their key."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice
from typing import Any

import msgspec
from pydantic import AliasChoices, AliasPath, BaseModel, RootModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_json

from chainette.core.dump import NotRoundTrip, dump_model, explain, short
from chainette.errors import InputError
from chainette.io.inputs.readers import InputFile, Record
from chainette.io.inputs.renaming import AS_IT_IS, Renaming
from chainette.io.tables.column_types import json_fields
from chainette.utils.argument_advice import nearest
from chainette.utils.json_escapes import ESCAPE
from chainette.utils.user_errors import RAISED, told

__all__ = ["BadRecord", "InputModel", "columns_of"]

_log = logging.getLogger("chainette")
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
#: The most names of ignored columns that are kept; an input may have a new one in every row.
_MOST_IGNORED = 100
#: The number of JSON records that are examined for their columns.
_SAMPLE = 100


class BadRecord(ValueError):
    """The record cannot become a row; the message is written to `rejected/`."""


class InputModel:
    """Validates records against a chain's input model.

    Values from JSON and Parquet are validated as JSON (a date is its ISO text). CSV cells are converted from text by
    pydantic, except that a cell for a list, dict or model is JSON. Unknown columns are treated according to the model's
    `extra`; ignored ones are reported once, in the log of the process.
    """

    def __init__(self, model: type[BaseModel], key: str | None = None, renaming: Renaming = AS_IT_IS) -> None:
        self.model = model
        self.key = key
        self._renaming = renaming
        #: The unknown columns that were ignored so far, at most a hundred.
        self.ignored: set[str] = set()
        self._known = _known_columns(model)
        self._ignores = model.model_config.get("extra") in (None, "ignore") and not issubclass(model, RootModel)
        validators = model.__pydantic_decorators__.model_validators.values()
        #: A validator that sees the whole record may use columns that no field names.
        self._sees_all = any(validator.info.mode != "after" for validator in validators)

    def unused(self, columns: Iterable[str]) -> list[str]:
        """The columns of an input that no row needs. They are reported once."""
        columns = list(columns)
        self._note_ignored(self._renaming.names(columns))
        return [column for column in columns if column != self.key and not self._fills(column)]

    def require_columns(self, source: InputFile) -> None:
        """Checks that no file has only unknown columns, as happens if a header is missing.

        JSON is examined only if the model requires no field: then every record would become a row of defaults; otherwise,
        each record is rejected.

        Raises:
            InputError: a file has none of the model's columns, or lacks one that was renamed; or the model lacks the field.
        """
        for field, column in self._renaming.columns.items():
            self._require_renamed(field, column, source)
        if not self._known or self._uses(""):
            return
        needs = any(field.is_required() for field in self.model.model_fields.values())
        for part in source.parts():
            columns = part.columns() if needs else columns_of(part)
            if columns and self._known.isdisjoint(self._renaming.names(columns)):
                hint = "; is the first line its header?" if part.kind in ("csv", "tsv") else ""
                raise InputError(
                    f"{part.path}: none of its columns is a field of {self.model.__name__} "
                    f"({_listed(sorted(self._known))}): it has {_listed(columns)}{hint}; to use a column with another name: "
                    f"--columns {self._example()}={columns[0][:40]}"
                )

    def _example(self) -> str:
        """The first column that a row needs, or else any column that it may have."""
        fields = self.model.model_fields.items()
        needed = (_columns_of(name, field, by_name=False)[0] for name, field in fields if field.is_required())
        return next(needed, min(self._known))

    def _require_renamed(self, field: str, column: str, source: InputFile) -> None:
        """Raises InputError if a file lacks a renamed column, or the model lacks the field."""
        said = f"--columns {field}={column}"
        if not self._uses(field):
            raise InputError(f"{said}: {self.model.__name__} has no field {field!r}{nearest(field, self._known)}")
        for part in source.parts() if source.columns() is not None else [source]:
            columns = columns_of(part)
            if columns and column not in columns:
                close = nearest(column, columns)
                hint = close if "did you mean" in close else ""
                raise InputError(f"{said}: {part.path} has no column {column!r}; it has {_listed(columns)}{hint}")

    def validate(self, record: Record) -> tuple[bytes, bytes | None]:
        """The row's JSON dump, and the JSON of its key column (None if it has none).

        Raises:
            BadRecord: the record does not fit the model.
        """
        if record.error:
            raise BadRecord(record.error)
        if isinstance(record.data, bytes):
            return self._from_json(record.data)
        return self._from_cells(record, record.data)

    def _from_json(self, data: bytes) -> tuple[bytes, bytes | None]:
        fields = _decode_object(data)
        key = bytes(fields[self.key]) if self.key in fields else b"null"
        if self._renaming.columns:
            fields = self._renaming.apply(fields)
            data = msgspec.json.encode(fields)
        self._note_ignored(fields.keys())
        dump = self._dump(lambda: self.model.__pydantic_validator__.validate_json(data))
        return dump, None if key == b"null" else key

    def _from_cells(self, record: Record, cells: dict[str, Any]) -> tuple[bytes, bytes | None]:
        key = None if self.key is None else cells.get(self.key)
        for column, reason in record.unreadable.items():
            if column == self.key or self._fills(column):
                raise BadRecord(f"{column}: {reason}")
        cells = self._renaming.apply(cells)
        self._note_ignored(cells.keys())
        values = self._parse_cells({name: cell for name, cell in cells.items() if self._uses(name)})
        if all(isinstance(cell, str) for cell in cells.values()):
            dump = self._dump(lambda: self.model.__pydantic_validator__.validate_python(values, strict=False))
        else:
            data = self._as_json(values)
            dump = self._dump(lambda: self.model.__pydantic_validator__.validate_json(data))
        return dump, None if key is None else _key_json(key)

    def _fills(self, column: str) -> bool:
        """Whether a column of the input fills a field."""
        return any(map(self._uses, self._renaming.fields(column)))

    def _uses(self, column: str) -> bool:
        return not self._ignores or self._sees_all or column in self._known

    def _as_json(self, values: dict[str, Any]) -> bytes:
        try:
            return to_json(values, bytes_mode=self.model.model_config.get("val_json_bytes", "utf8"), inf_nan_mode="constants")
        except ValueError as error:
            raise BadRecord(_not_json(values, error)) from error

    def _parse_cells(self, cells: dict[str, Any]) -> dict[str, Any]:
        parsed = dict(cells)
        for name, takes_text in json_fields(self.model).items():
            cell = cells.get(name)
            if isinstance(cell, str):
                parsed[name] = _parse_cell(name, cell, takes_text)
        return parsed

    def _note_ignored(self, names: Any) -> None:
        if self._ignores and not self._known.issuperset(names) and len(self.ignored) < _MOST_IGNORED:
            new = [name for name in names if name not in self._known and name not in self.ignored and name != self.key]
            if new:
                self.ignored.update(new)
                said = ", ".join(map(repr, new))
                _log.warning("the input has columns that %s does not have; they are ignored: %s", self.model.__name__, said)

    def _dump(self, validate: Any) -> bytes:
        try:
            return dump_model(validate())
        except ValidationError as error:
            raise BadRecord(explain(error)) from error
        except NotRoundTrip as error:
            raise BadRecord(str(error)) from error
        except RAISED as error:  # validators are the user's code
            raise BadRecord(f"a validator of {self.model.__name__} raised {told(error)}") from error


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name[:40]) for name in names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def columns_of(source: InputFile) -> list[str]:
    """The columns of an input; for JSON, those of its first records; [] if that would mean waiting for them."""
    if source.growing is not None:
        return source.growing.columns
    if (columns := source.columns()) is not None:
        return columns
    found = (record.data for record in islice(source.records(), _SAMPLE) if isinstance(record.data, bytes))
    return sorted({name for data in found for name in _object_names(data)})


def _object_names(data: bytes) -> set[str]:
    """The names of the members of a JSON object; none if the data is not a JSON object."""
    try:
        return set(_decode_object(data))
    except BadRecord:
        return set()


def _decode_object(data: bytes) -> dict[str, msgspec.Raw]:
    """The members of a JSON object, checked for syntax but not decoded."""
    try:
        return _object.decode(data)
    except msgspec.ValidationError as error:
        found = str(error).rpartition("got ")[2].strip("`")
        raise BadRecord(f"expected a JSON object, but this line is of type {found}") from error
    except RecursionError as error:
        raise BadRecord("not readable as JSON: nested too deeply") from error
    except msgspec.DecodeError as error:
        raise BadRecord(f"not JSON: {_syntax_fault(data, str(error))}") from error


def _syntax_fault(data: bytes, words: str) -> str:
    """The reason why msgspec cannot decode a line. It also calls a line truncated that has half of a surrogate pair."""
    if ("truncated" in words and data.rstrip().endswith(b"}")) or "surrogate" in words:
        for escape in ESCAPE.finditer(data.decode(errors="replace")):
            if escape["half"]:
                return f"half of a surrogate pair ({escape['half']}), which is no character"
    hint = "; NaN and Infinity are not JSON, write null" if b"NaN" in data or b"Infinity" in data else ""
    return words.removeprefix("JSON is malformed: ").replace("Input data was truncated", "it ends too early") + hint


def _parse_cell(name: str, cell: str, takes_text: bool) -> Any:
    try:
        return msgspec.json.decode(cell)
    except (msgspec.DecodeError, RecursionError) as error:
        if takes_text:
            return cell
        raise BadRecord(f"{name}: the cell must contain JSON, but has {cell[:60]!r}") from error


def _not_json(values: dict[str, Any], error: ValueError) -> str:
    for name, value in values.items():
        try:
            to_json(value, inf_nan_mode="constants")
        except ValueError as found:
            why = str(found).removeprefix("Error serializing to JSON: ")
            hint = (
                "; set val_json_bytes and ser_json_bytes to 'base64' in the model's config" if isinstance(value, bytes) else ""
            )
            return f"{name}: {short(value)} cannot be written as JSON: {why}{hint}"
    return str(error)


def _key_json(value: Any) -> bytes:
    try:
        return to_json(value)
    except ValueError as error:
        raise BadRecord(f"the key {value!r:.60} cannot be written as JSON: {error}") from error


def _known_columns(model: type[BaseModel]) -> frozenset[str]:
    by_name = bool(model.model_config.get("populate_by_name") or model.model_config.get("validate_by_name"))
    return frozenset(
        column for name, field in model.model_fields.items() for column in _columns_of(name, field, by_name=by_name)
    )


def _columns_of(name: str, field: FieldInfo, *, by_name: bool) -> list[str]:
    alias = field.validation_alias or field.alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias] if alias is not None else []
    columns = [str(choice.path[0]) if isinstance(choice, AliasPath) else choice for choice in choices]
    return [*columns, name] if by_name or not columns else columns
