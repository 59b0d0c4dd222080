"""Imports the user's modules under private names, so that two chains may both have a `models.py`.

Every load gets a private package name (`_chainette_1a2b3c4d`); `import models` inside the user's code finds
`_chainette_1a2b3c4d.models`. The modules stay in `sys.modules` under those names, so that forward references of
pydantic, dataclasses and pickle work, and imports inside functions give the same result at any time and in any thread.
`sys.path` is never changed. `importlib.import_module("models")`, with the public name, is not supported.

User modules are Python files under the roots. They take precedence over installed packages, as for a script; a folder
without `__init__.py` does so only if nothing else has its name. Bytecode is neither read nor written, so that the code
that runs is the code that was hashed.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import importlib.util
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

__all__ = ["PrivateImporter", "is_private", "public_name"]

_PREFIX = "_chainette_"
_PRIVATE = re.compile(_PREFIX + r"[0-9a-f]{8}(_\d+)?(\.|__)?")

#: Packages whose classes the user's code and Chainette must share.
_SHARED = frozenset({"chainette", "chainette_workers", "msgspec", "pydantic", "pydantic_core", "typing_extensions"})

_lock = threading.Lock()


def public_name(text: str) -> str:
    """The text with modules named as the user wrote them."""
    return _PRIVATE.sub("", text)


def is_private(module: str) -> bool:
    """Whether a module is the user's, imported by a load."""
    return module.startswith(_PREFIX)


class PrivateImporter:
    """One load of a chain: a package name, the roots it searches, and the sources it executed."""

    def __init__(self, identity: str, roots: Sequence[Path], only: str | None = None) -> None:
        """`only` restricts the search to one top-level package, if its root holds unrelated packages too."""
        self.roots = [str(root) for root in roots]
        #: File -> its executed source.
        self.sources: dict[str, bytes] = {}
        #: File -> sha256 of each source that may be executed; None allows any.
        self.allowed: Mapping[str, str] | None = None
        self._only = only
        self._owned: dict[str, bool] = {}
        self.name = self._claim(hashlib.sha256(identity.encode()).hexdigest()[:8])
        self.builtins: dict[str, Any] = {**vars(builtins), "__import__": self._import}

    def _claim(self, digest: str) -> str:
        """Adds an empty package to `sys.modules` under an unused name, and returns the name."""
        with _lock:
            importlib.invalidate_caches()
            if not any(isinstance(finder, _PrivateFinder) for finder in sys.meta_path):
                sys.meta_path.insert(0, _PrivateFinder())
            name, count = _PREFIX + digest, 1
            while name in sys.modules:
                count += 1
                name = f"{_PREFIX}{digest}_{count}"
            package = ModuleType(name)
            package.__path__ = self.roots
            package.__dict__["__importer__"] = self
            sys.modules[name] = package
        return name

    def forget(self) -> None:
        """Removes a load from `sys.modules`, since it failed or nothing of it is used any more."""
        for name in [name for name in [*sys.modules] if name == self.name or name.startswith(self.name + ".")]:
            sys.modules.pop(name, None)

    def run_file(self, path: Path) -> ModuleType:
        """Imports a file as a module of this load."""
        name = f"{self.name}.{path.stem.replace('.', '_')}"
        loader = _PrivateLoader(name, str(path))
        spec = importlib.util.spec_from_file_location(name, path, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        loader.exec_module(module)
        return module

    def run_module(self, name: str) -> ModuleType:
        """Imports a module by its public name."""
        return importlib.import_module(f"{self.name}.{name}")

    def owns(self, top: str) -> bool:
        """Whether a top-level name is the user's."""
        if top not in self._owned:
            self._owned[top] = top not in _SHARED and top not in sys.builtin_module_names and self._finds(top)
        return self._owned[top]

    def _finds(self, top: str) -> bool:
        if self._only is not None:
            return top == self._only
        spec = PathFinder.find_spec(f"{self.name}.{top}", self.roots)
        if spec is None:
            return False
        return spec.origin is not None or not (top in sys.modules or PathFinder.find_spec(top))

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Implements `import` statements in user code."""
        top = name.partition(".")[0]
        if level or not self.owns(top):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        module = builtins.__import__(f"{self.name}.{name}", globals, locals, fromlist or (), 0)
        return module if fromlist else sys.modules[f"{self.name}.{top}"]


class _PrivateFinder(MetaPathFinder):
    """Finds modules of private packages. One finder serves all loads: it has no state, and packages know their importers."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(_PREFIX) or path is None:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _PrivateLoader(fullname, spec.loader.path)
            spec.cached = None
        return spec


class _PrivateLoader(SourceFileLoader):
    """Executes the source and keeps it; gives the module an `import` that finds its siblings."""

    @property
    def _importer(self) -> PrivateImporter:
        package = sys.modules[self.name.partition(".")[0]]
        importer: PrivateImporter = package.__dict__["__importer__"]
        return importer

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = self._importer.builtins
        super().exec_module(module)

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002  (each module has its own loader)
        data, allowed = Path(self.path).read_bytes(), self._importer.allowed
        if allowed is not None and allowed.get(self.path) != hashlib.sha256(data).hexdigest():
            raise ImportError(f"{self.path} is not among the files that were enqueued, or has changed since")
        self._importer.sources[self.path] = data
        code: CodeType = self.source_to_code(data, self.path)
        return code

    def get_source(self, fullname: str) -> str:  # noqa: ARG002
        kept = self._importer.sources.get(self.path)
        return importlib.util.decode_source(Path(self.path).read_bytes() if kept is None else kept)
