"""Flags in bundles: a command's parameter whose type is a dataclass stands for one flag per field.

Typer reads flags off the parameters of a function. `Flags` shows it the fields of the bundles, and puts the dataclasses
together out of the words the user typed, so that no command repeats the thirty flags of `run`.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.models import ParameterInfo

from chainette.core.run_settings import FLAGS, RECORDED, RESUMABLE, Flag, RunSettings

__all__ = ["Flags", "Hidden", "Only", "fixed_flags", "words_of"]


class Only(frozenset[str]):
    """The flags of a bundle a command has: `Annotated[RunSettings, Only({"limit"})]`."""


class Hidden(frozenset[str]):
    """Flags a command takes in order to refuse them in words; its help leaves them out."""


class Flags:
    """The parameters of a command as Typer sees them."""

    def __init__(self, command: Callable[..., None]) -> None:
        self._own = [*inspect.signature(command, eval_str=True).parameters.values()]
        self._bundles = {parameter.name: _Bundle.of(parameter) for parameter in self._own if _is_bundle(parameter)}

    def signature(self, *more: inspect.Parameter) -> inspect.Signature:
        """All flags, keywords only."""
        return inspect.Signature([flag.replace(kind=inspect.Parameter.KEYWORD_ONLY) for flag in [*self._flags(), *more]])

    def __contains__(self, name: str) -> bool:
        return any(flag.name == name for flag in self._flags())

    def _flags(self) -> Iterator[inspect.Parameter]:
        for parameter in self._own:
            yield from self._bundles[parameter.name].flags if parameter.name in self._bundles else (parameter,)

    def arguments(self, typed: dict[str, Any]) -> dict[str, Any]:
        """The command's arguments, out of the words typed for each flag."""
        rest = dict(typed)
        bundles = {name: bundle.filled(rest) for name, bundle in self._bundles.items()}
        return rest | bundles


def _is_bundle(parameter: inspect.Parameter) -> bool:
    return dataclasses.is_dataclass(_kind_of(parameter.annotation))


def _kind_of(annotation: Any) -> Any:
    """The type behind `Annotated`."""
    return getattr(annotation, "__origin__", annotation)


@dataclass(frozen=True)
class _Bundle:
    type: Callable[..., Any]
    flags: tuple[inspect.Parameter, ...]

    @classmethod
    def of(cls, parameter: inspect.Parameter) -> _Bundle:
        kind, *marks = get_args(parameter.annotation) or (parameter.annotation,)
        only = next((mark for mark in marks if isinstance(mark, Only)), None)
        hidden = next((mark for mark in marks if isinstance(mark, Hidden)), Hidden())
        hints = get_type_hints(kind, include_extras=True)
        fields = [field for field in dataclasses.fields(kind) if only is None or field.name in only]
        flags = [_flag(field, hints[field.name], again=only is not None) for field in fields]
        return cls(kind, tuple(_hidden(flag) if flag.name in hidden else flag for flag in flags if flag is not None))

    def filled(self, typed: dict[str, Any]) -> Any:
        """Takes the bundle's values out of those that were typed."""
        values = {flag.name: typed.pop(flag.name) for flag in self.flags if flag.name in typed}
        return self.type(**{name: _as_setting(value) if name in FLAGS else value for name, value in values.items()})


def _as_setting(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(str, value))
    return str(value) if isinstance(value, Path) else value


def _flag(field: dataclasses.Field[Any], hint: Any, *, again: bool) -> inspect.Parameter | None:
    """The flag of a field; None if the field has none. `again`: of a command that goes on with a run."""
    kind, *marks = get_args(hint) or (hint,)
    default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
    for mark in marks:
        if isinstance(mark, Flag):
            hint = _option(field.name, kind, mark, again=again)
        if isinstance(mark, Flag | ParameterInfo):
            return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
    return None


def _option(name: str, kind: Any, flag: Flag, *, again: bool) -> Any:
    """A setting of runs as Typer takes it."""
    word, shown = _word(name), (flag.raised if again else "") or flag.help
    if flag.file:
        is_there = typer.Option(word, metavar=flag.metavar, exists=True, dir_okay=False, resolve_path=True, help=shown)
        return Annotated[Path | None, is_there]
    if kind == tuple[str, ...]:
        kind = list[Path] if flag.folder else list[str]
        return Annotated[kind, typer.Option(word, metavar=flag.metavar, help=shown)]
    both = f"{word}/--no-{word.removeprefix('--')}" if kind is bool else word  # chainette.toml may set either
    return Annotated[kind, typer.Option(both, metavar=flag.metavar, min=flag.minimum, help=shown)]


def _hidden(flag: inspect.Parameter) -> inspect.Parameter:
    kind, option = get_args(flag.annotation)
    option = copy.copy(option)
    option.hidden = True
    return flag.replace(annotation=Annotated[kind, option])


def _word(name: str) -> str:
    return FLAGS[name].name or f"--{name.replace('_', '-')}"


def fixed_flags() -> Iterator[str]:
    """The flags whose values the log of a run fixes for good."""
    for name in RECORDED - RESUMABLE:
        yield from (_word(name), _word(name).replace("--", "--no-", 1))


def words_of(settings: RunSettings) -> Iterator[str]:
    """The flags that give the same settings again."""
    for name, value in settings.given.items():
        if isinstance(value, tuple):
            yield from (word for one in value for word in (_word(name), one))
        elif isinstance(value, bool):
            yield _word(name) if value else _word(name).replace("--", "--no-", 1)
        else:
            yield from (_word(name), str(value))
