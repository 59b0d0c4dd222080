"""Loads a chain by reference, isolated from every other load, with a digest of its code.

A reference names a Chain, a YAML file that declares one (`core/document/`), or a factory: a function `-> Chain` whose
parameters get their values here (parameters.py).
A load has its own module names (importer.py) and its own engine registry. The digest covers the chain's file, every module
under the chain root that it imported, and every file under the chain root that it or the factory read (prompts,
engines.yml): equal digests mean equal code. Hidden folders, installed packages and imports inside functions are
not covered. A reference from Redis has a claim (confined.py), which is checked before the import.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, TypeVar

from chainette.core.chain import Chain
from chainette.core.usercode.chain_reference import ENGINES, ChainSource, claimed_source, source_of
from chainette.core.usercode.confined import ChainClaim, digest_of
from chainette.core.usercode.importer import public_name
from chainette.core.usercode.parameters import Parameter, Values, given, is_factory, parameters_of, recorded
from chainette.core.usercode.source import is_library, is_part
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import ChainetteError, LoadError, ParameterError, Place
from chainette.utils.user_errors import RAISED

__all__ = ["LoadedChain", "load_chain"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class LoadedChain:
    """A chain and its origin."""

    chain: Chain
    #: Loads the same chain again: "folder/chain.py:name" below the chain root, or "package.module:name". A file outside
    #: the chain root has its absolute path.
    reference: str
    #: The engines that the file registered.
    registry: EngineRegistry
    #: The sha256 of the files: of their paths below the chain root and their contents.
    digest: str
    #: The files that the digest covers, sorted, and their names relative to the folder of the digest.
    files: tuple[Path, ...]
    names: tuple[str, ...] = ()
    #: The parameters of the factory that made the chain; () for a chain at module level.
    declared: tuple[Parameter, ...] = ()
    #: Their values as JSON, including defaults.
    parameters: Mapping[str, Any] = field(default_factory=dict)
    #: Removes its modules from `sys.modules`; for when nothing of the chain is used any more.
    forget: Callable[[], None] = lambda: None

    @property
    def claim(self) -> ChainClaim:
        """The claim with which other processes load the same code."""
        return ChainClaim(self.digest, self.names)


def load_chain(reference: str, chain_root: Path, values: Values | None = None, claim: ChainClaim | None = None) -> LoadedChain:
    """The chain that `reference` names: "chain.py" (its only one), "chain.py:name", "chain.yml", "package.module[:name]".

    Files are looked up below `chain_root`, then below the current folder. Every call imports the code again. If the name
    is that of a factory, `values` chooses the values of its parameters. With a `claim`, the reference came from another
    process: the chain must be below `chain_root` and have the claim's digest.

    Raises:
        LoadError: nothing was found, the code raised an error (the message has the user's line), or the reference is
            ambiguous.
        ClaimRefused: the code has another digest than the claim; nothing was executed.
        ParameterError: the values do not fit the factory's parameters.
    """
    target, _, name = reference.partition(":")
    root = Path(chain_root).resolve()
    if ":" in reference and not name:
        raise LoadError(f"{reference!r} ends in ':'; write {target!r}, or the name of a chain after it")
    source = source_of(target, root) if claim is None else claimed_source(target, root, claim)
    try:
        return _loaded(source, name, values or given({}))
    except BaseException:
        source.importer.forget()
        raise


def _loaded(source: ChainSource, name: str, values: Values) -> LoadedChain:
    registry, opened = EngineRegistry(), set[str]()
    module = _executed(source, source.run, registry, opened)
    variable, found = _chosen(module, name, source)
    reference = f"{source.base}:{variable}"
    declared: tuple[Parameter, ...] = ()
    chosen: dict[str, Any] = {}
    if isinstance(found, Chain):
        _require_no_values(reference, values)
        chain = found
    else:
        declared = parameters_of(found)
        chosen = _values(reference, declared, values)
        chain = _executed(source, functools.partial(found, **chosen), registry, opened)
        if not isinstance(chain, Chain):
            raise LoadError(f"{reference} returned {type(chain).__name__}, not a Chain")
    contents = _contents(source, opened)
    return LoadedChain(
        chain=chain,
        reference=reference,
        registry=chain.registry,
        digest=digest_of(contents),
        files=tuple(sorted(source.root / path for path in contents)),
        names=tuple(sorted(contents)),
        declared=declared,
        parameters=recorded(declared, chosen),
        forget=source.importer.forget,
    )


def _values(reference: str, declared: tuple[Parameter, ...], values: Values) -> dict[str, Any]:
    try:
        return values(declared)
    except ParameterError as error:
        raise ParameterError(f"{reference}: {error}") from error


def _require_no_values(reference: str, values: Values) -> None:
    """Raises ParameterError if there are values, and the chain has no factory that takes them."""
    try:
        values(())
    except ParameterError as error:
        raise ParameterError(
            f"{reference} is a chain without parameters; to give it some, write a function that makes it, "
            f"`def make(tone: str) -> Chain: ...`, and refer to it: {reference.rpartition(':')[0]}:make"
        ) from error


# -- executing

#: The files read in this context while a chain is imported.
_reading: ContextVar[set[str] | None] = ContextVar("chainette_files_read", default=None)


def _executed(source: ChainSource, run: Callable[[], _T], registry: EngineRegistry, opened: set[str]) -> _T:
    """Runs the user's code; records the engines it registers and the files that it reads."""
    try:
        with using_registry(registry), _watching(opened):
            return run()
    except RAISED as error:
        raise LoadError(_explained(error, source)) from error


@contextmanager
def _watching(opened: set[str]) -> Iterator[None]:
    _install_hook()
    token = _reading.set(opened)
    try:
        yield
    finally:
        _reading.reset(token)


@functools.cache
def _install_hook() -> None:
    """Installs the audit hook that notes opened files; it cannot be removed, so one hook serves all loads."""

    def note(event: str, arguments: tuple[Any, ...], reading: ContextVar[set[str] | None] = _reading) -> None:
        if event == "open":
            opened = reading.get()
            path, mode = arguments[:2]
            if opened is not None and isinstance(path, (str, os.PathLike)) and mode in ("r", "rb", "rt"):
                opened.add(os.path.abspath(path))  # noqa: PTH100  (a Path for each file of each import is slow)

    sys.addaudithook(note)


def _explained(error: BaseException, source: ChainSource) -> str:
    """The error on one line, which begins with the file and line of the user's code."""
    text = public_name(str(error))
    if isinstance(error, SyntaxError) and error.filename and not is_library(error.filename):
        return f"{error.filename}:{error.lineno or 1}: syntax error: {public_name(error.msg)}"
    place = str(_place(error) or source.base)
    if isinstance(error, ChainetteError):
        return text if text.startswith(place.rpartition(":")[0]) else f"{place}: {text}"
    if isinstance(error, SystemExit):
        return f"{place}: the chain's file ended the program (SystemExit: {text})"
    if isinstance(error, ModuleNotFoundError):
        text += " (looked next to the file, in the chain root and among the installed packages)"
    return f"{place}: {type(error).__name__}{f': {text}' if text else ''}"


def _place(error: BaseException) -> Place | None:
    """The innermost line of the user's code in the traceback; None if there is none."""
    place, traceback = None, error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not is_library(file):
            place = Place(file, traceback.tb_lineno)
        traceback = traceback.tb_next
    return place


# -- choosing


def _chosen(module: ModuleType, name: str, source: ChainSource) -> tuple[str, Chain | FunctionType]:
    """(variable, chain or factory) of the given name, or the only one."""
    chains = _chains(module)
    if name:
        return _named(module, name, chains, source)
    own = {variable: chain for variable, chain in chains.items() if chain.place.file == module.__file__} or chains
    if not own:
        return _only_factory(module, source)
    if len(own) > 1:
        raise LoadError(f"{source.base} has {len(own)} chains; say which: {_references(source, own)}")
    return next(iter(own.items()))


def _only_factory(module: ModuleType, source: ChainSource) -> tuple[str, FunctionType]:
    factories = _factories(module)
    if not factories:
        raise LoadError(f"{source.base} declares no Chain; it needs one at module level: chain = Chain(name=..., steps=[...])")
    if len(factories) > 1:
        raise LoadError(
            f"{source.base} has {len(factories)} functions that make chains; say which: {_references(source, factories)}"
        )
    return next(iter(factories.items()))


def _factories(module: ModuleType) -> dict[str, FunctionType]:
    """The factories that the module itself declares."""
    return {name: value for name, value in vars(module).items() if is_factory(value) and value.__module__ == module.__name__}


def _chains(module: ModuleType) -> dict[str, Chain]:
    """Variable -> chain at module level; each chain appears once, under its first variable."""
    found: dict[Chain, str] = {}
    for variable, value in vars(module).items():
        if isinstance(value, Chain):
            found.setdefault(value, variable)
    return {variable: chain for chain, variable in found.items()}


def _named(module: ModuleType, name: str, chains: dict[str, Chain], source: ChainSource) -> tuple[str, Chain | FunctionType]:
    value = vars(module).get(name)
    if isinstance(value, Chain):
        return name, value
    if is_factory(value):
        return name, value
    same = {variable: chain for variable, chain in chains.items() if chain.name == name}
    if len(same) == 1:
        return next(iter(same.items()))
    if same:
        raise LoadError(f"{source.base} has {len(same)} chains named {name!r}; say which: {_references(source, same)}")
    makers = [*chains, *_factories(module)]
    known = f"; it has: {_references(source, makers)}" if makers else "; it declares no Chain"
    if isinstance(value, FunctionType):
        raise LoadError(
            f"{source.base}: {name!r} is a function, not a Chain; "
            f"one that makes a chain is declared `def {name}(...) -> Chain`{known}"
        )
    if name in vars(module):
        raise LoadError(f"{source.base}: {name!r} is a {type(value).__name__}, not a Chain{known}")
    raise LoadError(f"{source.base} has no chain {name!r}{known}")


def _references(source: ChainSource, variables: Iterable[str]) -> str:
    return ", ".join(f"{source.base}:{variable}" for variable in variables)


# -- the digest


def _contents(source: ChainSource, opened: set[str]) -> dict[str, str]:
    """Path below the root -> sha256 of every file that defines the chain."""
    contents = {_below(file, source.root): hashlib.sha256(data).hexdigest() for file, data in source.importer.sources.items()}
    read = {Path(file) for file in opened} | {source.file.parent / ENGINES}
    for path in sorted(path for path in read if is_part(path, source.root)):
        if str(path) not in source.importer.sources:
            with path.open("rb") as stream:
                contents[_below(str(path), source.root)] = hashlib.file_digest(stream, "sha256").hexdigest()
    return contents


def _below(file: str, root: Path) -> str:
    return Path(file).relative_to(root).as_posix()
