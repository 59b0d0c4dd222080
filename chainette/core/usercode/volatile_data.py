"""Finds data in the user's code that may differ between two processes, by syntax alone.

Such data are state that changes while rows are computed, values from the clock or the process, and the order of sets.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import lru_cache

__all__ = ["differs_by_process", "from_a_set", "names_of_own_state", "names_of_state", "origins_of"]

#: Calls whose result depends on the time, machine or process of the import.
_OF_A_PROCESS = frozenset(
    {"now", "utcnow", "today", "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "uuid1"}
    | {"uuid4", "getpid", "getppid", "get_ident", "gethostname", "mkdtemp", "mkstemp", "gettempdir", "cpu_count"}
    | {"TemporaryDirectory", "NamedTemporaryFile", "token_hex", "token_bytes", "token_urlsafe", "urandom", "getnode"}
)

#: Methods that change their object in place.
_CHANGING = frozenset(
    {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear"}
    | {"appendleft", "extendleft", "popleft", "subtract"}
)


def differs_by_process(statements: Iterable[ast.AST]) -> bool:
    """Whether assignments use a value of the clock or the process, which differs at every resume."""
    calls = (part.func for statement in statements for part in ast.walk(statement) if isinstance(part, ast.Call))
    return any(getattr(call, "attr", getattr(call, "id", "")) in _OF_A_PROCESS for call in calls)


def origins_of(tree: ast.Module, statements: Iterable[ast.AST]) -> list[ast.AST]:
    """The statements, those that set the globals they use, and the returns of the functions they call."""
    tops = _tops(tree)
    found: dict[int, ast.AST] = {}
    pending = [*statements]
    while pending:
        statement = pending.pop()
        if id(statement) not in found:
            found[id(statement)] = statement
            names = {part.id for part in ast.walk(statement) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}
            pending += [origin for name in names for origin in tops.get(name, ())]
    return [*found.values()]


@lru_cache(maxsize=64)
def _tops(tree: ast.Module) -> dict[str, list[ast.AST]]:
    """Name -> the assignments at the top of a module that set it, or the returns of its function."""
    tops: dict[str, list[ast.AST]] = {}
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef):
            tops[statement.name] = [part for part in ast.walk(statement) if isinstance(part, ast.Return)]
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
                if isinstance(target, ast.Name):
                    tops.setdefault(target.id, []).append(statement)
    return tops


def from_a_set(statements: Iterable[ast.AST]) -> bool:
    """Whether assignments use a set, whose order differs in every process."""
    parts = (part for statement in statements for part in ast.walk(statement))
    return any(
        isinstance(part, (ast.Set, ast.SetComp)) or (isinstance(part, ast.Name) and part.id in ("set", "frozenset"))
        for part in parts
    )


@lru_cache(maxsize=64)
def names_of_state(tree: ast.Module) -> frozenset[str]:
    """Globals that functions change while rows are computed: caches and counters.

    Functions that run during the import, because module-level code calls them, fill data and hold no state.
    """
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inside = {part for function in functions for part in ast.walk(function)}
    at_import = _called(part for part in ast.walk(tree) if part not in inside)
    calls = {function.name: _called(ast.walk(function)) for function in functions}
    while (more := at_import.union(*(calls[name] for name in at_import & calls.keys()))) != at_import:
        at_import = more
    return frozenset(name for function in functions if function.name not in at_import for name in _changed_by(function))


@lru_cache(maxsize=256)
def names_of_own_state(node: ast.ClassDef) -> frozenset[str]:
    """Attributes of `self` that methods change after construction, or that differ in every process."""
    methods = {part.name: part for part in node.body if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef))}
    early = {"__init__", "__post_init__", "__new__"} & methods.keys()
    while (more := early.union(*(_methods_called(methods[name]) for name in early)) & methods.keys()) != early:
        early = more
    changed = {name for key, method in methods.items() if key not in early for name in _attributes_changed(method)}
    set_by_process = {name for part in ast.walk(node) if differs_by_process([part]) for name in _own_targets(part)}
    return frozenset(changed | set_by_process)


def _methods_called(method: ast.AST) -> set[str]:
    return {part.func.attr for part in ast.walk(method) if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute)}


def _own_targets(part: ast.AST) -> set[str]:
    """`self.name` in the targets of an assignment."""
    targets = part.targets if isinstance(part, ast.Assign) else [part.target] if isinstance(part, ast.AnnAssign) else []
    return {name.attr for target in targets for name in ast.walk(target) if isinstance(name, ast.Attribute)}


def _attributes_changed(method: ast.AST) -> set[str]:
    """`self.name = ...`, `self.name[key] = ...`, `self.name.append(...)`, by name."""
    parts = [*ast.walk(method)]
    changed = [part for part in parts if isinstance(part, (ast.Subscript, ast.Attribute)) and _is_changed(part)]
    called = (part.func for part in parts if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute))
    changed += [
        func.value for func in called if func.attr in _CHANGING and isinstance(func.value, (ast.Subscript, ast.Attribute))
    ]
    return {name.attr for part in changed for name in ast.walk(part) if isinstance(name, ast.Attribute)}


def _called(parts: Iterable[ast.AST]) -> set[str]:
    calls = (part.func for part in parts if isinstance(part, ast.Call))
    return {call.id for call in calls if isinstance(call, ast.Name)}


def _changed_by(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """The globals that a function rebinds or changes in place."""
    parts = [*ast.walk(function)]
    declared = {name for part in parts if isinstance(part, ast.Global) for name in part.names}
    own = {part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    own |= {part.arg for part in parts if isinstance(part, ast.arg)}
    changed = {_base(part) for part in parts if isinstance(part, (ast.Subscript, ast.Attribute)) and _is_changed(part)}
    changed |= {
        _base(part.func.value)
        for part in parts
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr in _CHANGING
    }
    return declared | (changed - own)


def _is_changed(part: ast.Subscript | ast.Attribute) -> bool:
    return isinstance(part.ctx, (ast.Store, ast.Del))


def _base(node: ast.expr) -> str:
    """The name at the start of an expression such as `cache[key].items`."""
    while isinstance(node, (ast.Subscript, ast.Attribute)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
