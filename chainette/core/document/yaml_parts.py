"""A YAML file as plain data that knows its lines.

YAML 1.2, core schema: `on`, `no` and `12:30` are text, `0o17` is a number. No tag constructs anything. Keys occur once.
JSON files are read too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from chainette.errors import LoadError, Place
from chainette.utils.argument_advice import nearest
from chainette.utils.yaml_faults import yaml_fault

__all__ = ["IMPLICIT", "Part", "parts_of"]

_TAG = "tag:yaml.org,2002:"

#: Values of a file, each use of an alias counted, so that a few lines of aliases cannot become millions of values.
_MOST_PARTS = 50_000

#: Mappings and lists inside one another.
_DEEPEST = 100


@dataclass(frozen=True)
class Part:
    """A value: text, a number, a bool, None, or a list or mapping of parts."""

    value: Any
    place: Place

    def fault(self, words: str) -> LoadError:
        """An error at this line."""
        return LoadError(f"{self.place}: {words}")

    def mapping(self, of: str) -> Mapping[str, Part]:
        """Raises LoadError unless it is a mapping; `of` names the expected content."""
        found = self.cases(of)
        for key, part in found.items():
            if not isinstance(key, str):
                raise part.fault(f"the key {_shown(key)} is not text; put it in quotes")
        return found

    def cases(self, of: str) -> Mapping[Any, Part]:
        """A mapping whose keys may be numbers, booleans and null, too.

        Raises:
            LoadError: it is no mapping.
        """
        if not isinstance(self.value, dict):
            raise self.fault(f"{of} is a mapping of names to values, found {self.shown}")
        return self.value

    def keys(self, of: str, known: Collection[str], needed: Sequence[str] = ()) -> Mapping[str, Part]:
        """A mapping with known keys.

        Raises:
            LoadError: it has another key (the nearest is suggested), or lacks one.
        """
        found = self.mapping(of)
        for key, part in found.items():
            if key not in known:
                raise part.fault(f"{of} has no key {key!r}{nearest(key, known)}")
        for key in needed:
            if key not in found:
                raise self.fault(f"{of} needs the key {key!r}")
        return found

    def items(self, of: str) -> Sequence[Part]:
        """Raises LoadError unless it is a list with items."""
        if not isinstance(self.value, list) or not self.value:
            raise self.fault(f"{of} is a list, found {self.shown}")
        return self.value

    def text(self, of: str) -> str:
        """Raises LoadError unless it is text."""
        if not isinstance(self.value, str):
            raise self.fault(f"{of} is text, found {self.shown}")
        return self.value

    @property
    def plain(self) -> Any:
        """The value without lines."""
        if isinstance(self.value, dict):
            return {key: part.plain for key, part in self.mapping("it").items()}
        return [part.plain for part in self.value] if isinstance(self.value, list) else self.value

    @property
    def shown(self) -> str:
        """The value in a message: no contents of lists and mappings, which may be long or secret."""
        if isinstance(self.value, dict | list):
            return ("a mapping" if isinstance(self.value, dict) else "a list") + (" without items" if not self.value else "")
        return _shown(self.value)


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


class _Resolver(BaseResolver):
    """The core schema of YAML 1.2."""


_BOOL = {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_KINDS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": ("|".join(_BOOL), list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}
for _kind, (_pattern, _first) in _KINDS.items():
    _Resolver.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), _first)

#: First letter -> (tag, pattern) of values that are not text.
IMPLICIT = _Resolver.yaml_implicit_resolvers


class _Loader(Reader, Scanner, Parser, Composer, _Resolver):
    def __init__(self, text: str) -> None:
        for base in (Reader, Scanner, Parser, Composer, _Resolver):
            base.__init__(self, *((text,) if base is Reader else ()))


def parts_of(file: Path, data: bytes) -> Part:
    """The contents of a file.

    Raises:
        LoadError: it is no YAML, holds more than plain data, or is too large.
    """
    try:
        text = data.decode("utf-8-sig")
        root = _Loader(text.replace("\t", " ") if file.suffix == ".json" else text).get_single_node()
    except UnicodeDecodeError as error:
        raise LoadError(f"{file}: is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise LoadError(f"{file}: is nested too deeply") from error
    except yaml.YAMLError as error:
        line, words = yaml_fault(error)
        raise LoadError(f"{Place(str(file), line)}: cannot be read as YAML: {words}") from None
    if root is None:
        raise LoadError(f"{file}: is empty")
    return _Reading(file).part(root, ())


class _Reading:
    def __init__(self, file: Path) -> None:
        self.file = str(file)
        self.count = 0

    def part(self, node: Node, around: tuple[int, ...]) -> Part:
        """The node as a part. `around` are the nodes it is in."""
        place = Place(self.file, node.start_mark.line + 1)
        self.count += 1
        if self.count > _MOST_PARTS:
            raise LoadError(f"{place}: the file has more than {_MOST_PARTS:,} values, those of aliases counted")
        if id(node) in around or len(around) > _DEEPEST:
            raise LoadError(f"{place}: this value {'contains itself' if id(node) in around else 'is nested too deeply'}")
        inside = (*around, id(node))
        match node:
            case MappingNode(tag="tag:yaml.org,2002:map"):
                return Part(self.entries(node, inside), place)
            case SequenceNode(tag="tag:yaml.org,2002:seq"):
                return Part([self.part(item, inside) for item in node.value], place)
            case ScalarNode():
                return Part(_scalar(node, place), place)
        raise LoadError(f"{place}: the tag {_tag(node)} is not read: a chain file is plain data")

    def entries(self, node: MappingNode, inside: tuple[int, ...]) -> dict[Any, Part]:
        found: dict[Any, Part] = {}
        for key_node, value_node in node.value:
            key = self.part(key_node, inside)
            if isinstance(key.value, dict | list):
                raise key.fault(f"{key.shown} cannot be a key")
            if key.value in found:
                raise key.fault(f"the key {key.value!r} is given twice, first on line {found[key.value].place.line}")
            found[key.value] = self.part(value_node, inside)
        return found


def _tag(node: Node) -> str:
    return repr("!!" + node.tag.removeprefix(_TAG) if node.tag.startswith(_TAG) else node.tag)


def _scalar(node: ScalarNode, place: Place) -> Any:
    kind, text = node.tag.removeprefix(_TAG), node.value
    if kind == "str":
        return _whole(text, place)
    if not node.tag.startswith(_TAG) or kind not in _KINDS:
        raise LoadError(f"{place}: the tag {_tag(node)} is not read: a chain file is plain data")
    if not re.fullmatch(_KINDS[kind][0], text):
        raise LoadError(f"{place}: {text[:40]!r} is no {kind}")
    try:
        return _convert(kind, text)
    except ValueError as error:  # more digits than Python reads
        raise LoadError(f"{place}: the number is too long") from error


def _convert(kind: str, text: str) -> Any:
    match kind:
        case "null":
            return None
        case "bool":
            return _BOOL[text]
        case "int":
            return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _whole(text: str, place: Place) -> str:
    r"""The text, pairs of `\ud83d\ude00` (as JSON writes letters beyond 16 bits) put together."""
    try:
        return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise LoadError(f"{place}: the text has half of a surrogate pair") from error
