"""Code and files a chain file names: only those below the chain root."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from chainette.core.apply import ApplyNode
from chainette.core.document.yaml_parts import Part, parts_of
from chainette.core.usercode.confined import confined_file
from chainette.core.usercode.importer import PrivateImporter
from chainette.core.usercode.source import is_part
from chainette.errors import LoadError
from chainette.utils.argument_advice import nearest
from chainette.utils.call_site import declared_at

__all__ = ["Code", "is_reference"]

_REFERENCE = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")

#: The most bytes of a prompt or a schema.
_MOST_BYTES = 4 << 20


def is_reference(text: str) -> bool:
    """Whether the text has the form module:name."""
    return _REFERENCE.fullmatch(text) is not None


@dataclass(frozen=True)
class Code:
    """The modules and files that one load may use."""

    file: Path
    root: Path
    importer: PrivateImporter

    def named(self, part: Part, what: str) -> Any:
        """The object that `module:name` names: a function or class a module below the chain root defines.

        Raises:
            LoadError: there is no such module or name, or it is another package's.
        """
        text = part.text(what)
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise part.fault(f"{what} is module:name, such as functions:split, found {part.shown}")
        module = self._module(part, match[1])
        if match[2] not in vars(module):
            public = [name for name in vars(module) if not name.startswith("_")]
            raise part.fault(f"module {match[1]!r} has no {match[2]!r}{nearest(match[2], public) if public else ''}")
        found = vars(module)[match[2]]
        if not _home(found).startswith(f"{self.importer.name}."):
            raise part.fault(
                f"{text!r} is not defined below the chain root, but in {_home(found)!r}; "
                "write a function or class of your own around it"
            )
        return found

    def model(self, part: Part) -> type[BaseModel]:
        """The pydantic model that `module:Class` names."""
        found = self.named(part, "a model")
        if not (isinstance(found, type) and issubclass(found, BaseModel)):
            raise part.fault(f"{part.value!r} is not a pydantic model")
        return found

    def path(self, part: Part, what: str) -> Path:
        """The file of `{file: name}`, named relative to the chain file.

        Raises:
            LoadError: it is no regular file below the chain root, or hidden: the digest of the code would not cover it.
        """
        named = part.keys(what, ["file"], ["file"])["file"]
        name = named.text(f"{what}: file")
        try:
            below = (self.file.parent / name).resolve().relative_to(self.root.resolve())
            found = confined_file(self.root, below.as_posix(), what, _MOST_BYTES)
        except (LoadError, OSError, RuntimeError, ValueError) as error:  # ValueError: elsewhere, or a null byte
            raise named.fault(
                str(error) if isinstance(error, LoadError) else f"{what} {name[:80]!r} is no file below {self.root}"
            ) from error
        if not is_part(found, self.root.resolve()):
            raise named.fault(f"{what} {name!r} is hidden or belongs to a package, so it is not part of the chain")
        return found

    def parts(self, part: Part) -> Part:
        """The contents of a schema's file."""
        path = self.path(part, "a schema")
        try:
            return parts_of(path, path.read_bytes())
        except OSError as error:
            raise part.fault(f"{path} cannot be read: {error.strerror}") from error

    def _module(self, part: Part, name: str) -> ModuleType:
        try:
            with declared_at(None):
                return self.importer.run_module(name)
        except ModuleNotFoundError as error:
            missing = str(error.name or "").removeprefix(f"{self.importer.name}.")
            if missing != name and not name.startswith(f"{missing}."):
                raise  # of the user's own import
            raise part.fault(f"there is no module {missing!r} beside {self.file.name} or in the chain root") from error


def _home(found: Any) -> str:
    """The module that defines a function, a class or an object's class."""
    while isinstance(found, functools.partial | ApplyNode):
        found = found.func if isinstance(found, functools.partial) else found.fn
    return str(getattr(found, "__module__", "") or "")
