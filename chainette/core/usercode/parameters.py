"""Parameters of a chain's factory: `def make(tone: Literal["formal", "casual"] = "formal") -> Chain`.

Values are given as text (`--set tone=casual`), validated by the parameter's annotation, and recorded as JSON. Text and
JSON are two notations of one value: `text_of` turns a recorded value into the text that gives it again.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from types import FunctionType
from typing import Any, TypeGuard, get_args, get_type_hints

import msgspec
from pydantic import SecretBytes, SecretStr, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from chainette.core.chain import Chain
from chainette.core.usercode.importer import public_name
from chainette.errors import LoadError, ParameterError, Place

__all__ = [
    "Offered",
    "Parameter",
    "Values",
    "agreed",
    "given",
    "is_factory",
    "parameters_of",
    "recorded",
    "set_flags",
    "settings_of",
    "text_of",
]

#: Chooses the values of a factory's parameters, by name. Parameters without a value keep their defaults.
Values = Callable[[Sequence["Parameter"]], dict[str, Any]]

#: Parameter -> the texts that are allowed for its value.
Offered = Mapping[str, Sequence[str]]

#: Names of parameters that would hold a secret key.
_KEY = re.compile(
    r"(^|_)(api_?keys?|access_?keys?|private_?keys?|auth_?keys?|secrets?|secret_?keys?|passwords?|passwd|passphrase"
    r"|credentials?|token)$",
    re.IGNORECASE,
)
_NUMBERS = (int, float, bool)

#: Kinds of parameters that a factory cannot have, with the reason.
_NAMELESS = {
    inspect.Parameter.POSITIONAL_ONLY: "{} cannot be given by name (it is before `/`)",
    inspect.Parameter.VAR_POSITIONAL: "*{} takes values without names",
    inspect.Parameter.VAR_KEYWORD: "**{} takes any name",
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a factory."""

    name: str
    #: The type that validates values.
    type: Any
    #: `inspect.Parameter.empty` if a value must be given.
    default: Any
    #: The annotation, as its author wrote it.
    written: str

    def __str__(self) -> str:
        return f"{self.name}: {self.written}" + ("" if self.required else f" = {self.shown(self.default)}")

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @cached_property
    def _adapter(self) -> TypeAdapter[Any] | None:
        """The adapter of the type; None if pydantic does not know the type."""
        try:
            return TypeAdapter(self.type)
        except (PydanticUserError, NameError):
            return None

    @property
    def readable(self) -> bool:
        """Whether a value can be given as text."""
        return self._adapter is not None

    def parsed(self, text: str) -> Any:
        """The value of a text: the text itself, pydantic's conversion of it, or JSON.

        Raises:
            ParameterError: it does not fit the annotation.
        """
        if not self.required and text == self._default_text:
            return self.default
        if text == "null" and type(None) in get_args(self.type):
            return None
        if self._adapter is None:
            raise ParameterError(f"--set {self.name}={text}: no text can be read as {self.written}")
        try:
            return self._adapter.validate_strings(text)
        except ValidationError as error:
            failed = error
        try:
            json.loads(text)
            return self._adapter.validate_json(text)
        except ValueError as error:  # from json or pydantic
            if isinstance(error, ValidationError) and text[:1] in ("[", "{"):
                failed = error
        hint = ' (write JSON, such as \'["a", "b"]\')' if "array" in str(failed) else ""
        raise ParameterError(f"--set {self.name}={text}: {_problems(failed)}{hint}")

    @cached_property
    def _default_text(self) -> str | None:
        return self.text(self.default)

    def text(self, value: Any) -> str | None:
        """The text for a value; None if no text gives it."""
        plain = self.plain(value)
        return None if plain is msgspec.UNSET else text_of(plain)

    def shown(self, value: Any) -> str:
        """The value, as it is shown to people."""
        plain = self.plain(value)
        return repr(value) if plain is msgspec.UNSET else json.dumps(plain, ensure_ascii=False)

    def plain(self, value: Any) -> Any:
        """The value as plain JSON data; UNSET if it cannot be written as JSON."""
        if self._adapter is None:
            return msgspec.UNSET
        try:
            found = self._adapter.dump_python(value, mode="json", warnings=False)
            if isinstance(value, (set, frozenset)):
                found = sorted(found, key=json.dumps)
            return found if json.loads(json.dumps(found, allow_nan=False)) == found else msgspec.UNSET
        except (ValueError, TypeError):  # PydanticSerializationError is a ValueError
            return msgspec.UNSET


def text_of(value: Any) -> str:
    """The text for a recorded value."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _problems(error: ValidationError) -> str:
    found = dict.fromkeys(problem["msg"] for problem in error.errors(include_url=False, include_context=False))
    return public_name("; ".join(found))


# -- of factories


def is_factory(value: Any) -> TypeGuard[FunctionType]:
    """Whether a value is a function that is annotated to return a Chain. No other function is ever called."""
    if not isinstance(value, FunctionType) or inspect.iscoroutinefunction(value):
        return False
    returned = _hints(value).get("return")
    return isinstance(returned, type) and issubclass(returned, Chain)


def _hints(function: FunctionType) -> dict[str, Any]:
    try:
        return get_type_hints(inspect.unwrap(function), include_extras=True)
    except Exception:  # a name in an annotation is missing: the signature still has its text
        return dict(function.__annotations__)


def parameters_of(factory: FunctionType) -> tuple[Parameter, ...]:
    """The parameters of a factory.

    Raises:
        LoadError: values cannot be given for one of them; the message has the factory's line.
    """
    hints = _hints(factory)
    code = inspect.unwrap(factory).__code__
    place = Place(code.co_filename, code.co_firstlineno)
    return tuple(_checked(factory, place, each, hints) for each in inspect.signature(factory).parameters.values())


def _checked(factory: FunctionType, place: Place, found: inspect.Parameter, hints: Mapping[str, Any]) -> Parameter:
    where = f"{place}: {factory.__name__}"
    if found.kind in _NAMELESS:
        raise LoadError(
            f"{where}: {_NAMELESS[found.kind].format(found.name)}; "
            f"write the parameters of a factory as `tone: str` or `tone: str = 'formal'`"
        )
    kind = hints.get(found.name, _type_of_default(found.default))
    _refuse_keys(where, found.name, kind)
    parameter = Parameter(found.name, kind, found.default, _written(kind, factory.__module__))
    if parameter.required and not parameter.readable:
        raise LoadError(f"{where}: no text can be read as {parameter.written}; give {found.name} a default, or another type")
    return parameter


def _written(kind: Any, module: str) -> str:
    """A type as its author would write it; an enum with its values."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"{kind.__name__}{tuple(member.value for member in kind)!r}"
    if isinstance(kind, type) and not get_args(kind):
        return kind.__name__
    return public_name(inspect.formatannotation(kind, base_module=module))


def _type_of_default(default: Any) -> Any:
    """The type of a parameter that has no annotation."""
    return str if default is None or default is inspect.Parameter.empty else type(default)


def _refuse_keys(where: str, name: str, kind: Any) -> None:
    """Raises LoadError for a parameter whose value would be a secret key, because values are recorded and shown."""
    if {SecretStr, SecretBytes} & {*_parts(kind)} or (_KEY.search(name) and kind not in _NUMBERS):
        raise LoadError(
            f"{where}: {name} would hold a secret key, but the values of parameters are recorded and shown; "
            f"name the environment variable that holds the key instead: register_engine(..., api_key_env='NAME')"
        )


def _parts(kind: Any) -> Iterator[Any]:
    yield kind if isinstance(kind, type) else None
    for part in get_args(kind):
        yield from _parts(part)


# -- values


def settings_of(words: Iterable[str]) -> dict[str, list[str]]:
    """Name -> text, from words of the form NAME=VALUE.

    Raises:
        ParameterError: a word is not NAME=VALUE.
    """
    found: dict[str, list[str]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ParameterError(f"--set {word}: expected NAME=VALUE, such as --set tone=formal")
        found.setdefault(name.strip(), []).append(text)
    return found


def given(texts: Mapping[str, str], kept: Mapping[str, Any] | None = None) -> Values:
    """Values given as text. `kept` are recorded values for parameters without a text; those of removed parameters are ignored.

    Raises (when the values are chosen):
        ParameterError: a name is unknown or missing, or a text does not fit; the message has every problem.
    """

    def values(parameters: Sequence[Parameter]) -> dict[str, Any]:
        known = {parameter.name: parameter for parameter in parameters}
        problems = [_unknown(name, text, known) for name, text in texts.items() if name not in known]
        found = {}
        for name, parameter in known.items():
            try:
                if name in texts:
                    found[name] = parameter.parsed(texts[name])
                elif kept and name in kept:
                    found[name] = parameter.parsed(text_of(kept[name]))
                elif parameter.required:
                    problems.append(f"--set {name}=VALUE is missing")
            except ParameterError as error:
                problems.append(str(error))
        if problems:
            takes = "".join(f"\n  {parameter}" for parameter in parameters)
            raise ParameterError("\n".join(problems) + f"\nparameters:{takes or ' none'}")
        return found

    return values


def _unknown(name: str, text: str, known: Mapping[str, Parameter]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"--set {name}={text}: there is no parameter {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")


def agreed(wanted: Mapping[str, Any], offered: Offered) -> Values:
    """The values with which a run was enqueued, built from this process's own texts and defaults.

    The `wanted` values come from Redis: they are only compared with, and never used.

    Raises (when the values are chosen):
        ParameterError: a value is neither offered nor the default.
    """

    def values(parameters: Sequence[Parameter]) -> dict[str, Any]:
        found, missing = {}, []
        for parameter in parameters:
            if parameter.name not in wanted and not parameter.required:
                continue
            text = text_of(wanted.get(parameter.name))
            chosen = [value for value in _offers(parameter, offered) if parameter.text(value) == text]
            if chosen:
                found[parameter.name] = chosen[0]
            elif parameter.required or parameter.text(parameter.default) != text:
                missing.append((parameter, text))
        if missing:
            raise ParameterError("; ".join(_differs(parameter, text, offered) for parameter, text in missing))
        return found

    return values


def set_flags(values: Mapping[str, Any]) -> str:
    """The command-line flags that give these values, quoted for a shell."""
    return shlex.join([word for name, value in values.items() for word in ("--set", f"{name}={text_of(value)}")])


def _offers(parameter: Parameter, offered: Offered) -> Iterator[Any]:
    for text in offered.get(parameter.name, ()):
        try:
            yield parameter.parsed(text)
        except ParameterError:
            continue


def _differs(parameter: Parameter, text: str, offered: Offered) -> str:
    here = " or ".join(offered.get(parameter.name, ())) or (
        "nothing" if parameter.required else parameter.shown(parameter.default)
    )
    return f"{parameter.name} is {text} where it was enqueued, but {here} here"


def recorded(parameters: Iterable[Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values for the log, including defaults, as JSON.

    Raises:
        ParameterError: JSON cannot hold a value that was given.
    """
    found = {}
    for parameter in parameters:
        plain = parameter.plain(values.get(parameter.name, parameter.default))
        if plain is not msgspec.UNSET:
            found[parameter.name] = plain
        elif parameter.name in values and values[parameter.name] is not parameter.default:
            raise ParameterError(f"--set {parameter.name}: JSON cannot hold the value {values[parameter.name]!r}")
    return found
