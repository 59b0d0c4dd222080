"""`chainette.toml`: a project's defaults for flags. A CHAINETTE_* variable wins over it, and a flag over both.

Its keys are the flags of `run` (core/run_settings.py) and a few paths and addresses. Commands read it; Python code that
calls `Chain.run` does not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from chainette.core.run_settings import FLAGS, UNRECORDED, RunSettings
from chainette.errors import InputError, SettingsError
from chainette.utils.argument_advice import nearest

__all__ = ["FILE", "KEYS", "Default", "Key", "default_map", "defaults_of", "nearest_file", "variables_of"]

FILE = "chainette.toml"

#: Settings that every session may give anew; the log keeps them for sessions that do not.
_KEPT = frozenset({"budget", "price"})

#: Commands that begin a run and take all its settings, and others that open engines.
_BEGIN = ("run", "enqueue", "plan")
_OPEN = ("inspect", "inspect-dag", "engines", "warmup", "conformance", "worker")


@dataclass(frozen=True)
class Key:
    """A key of the file."""

    help: str
    type: Any = str
    #: Whether it is a path, relative to the file; or several of them.
    path: bool = False
    #: The environment variable that wins over it.
    variable: str = ""
    #: Whether the variable, rather than a flag's default, carries the value to the commands.
    exported: bool = False


@dataclass(frozen=True)
class Default:
    """The value of a flag that is not given."""

    key: str
    value: Any
    #: `chainette.toml:3`, or `$CHAINETTE_SEED`.
    origin: str


def _word(name: str) -> str:
    return (FLAGS[name].name or name).removeprefix("--").replace("_", "-")


def _variable(key: str) -> str:
    """The variable of a setting; none for `key`, since people would keep a secret under such a name."""
    return "" if key == "key" else f"CHAINETTE_{key.replace('-', '_').upper()}"


#: Key -> the name of its setting.
_SETTINGS: Mapping[str, str] = {_word(name): name for name in FLAGS}

#: Every key of `[run]`.
KEYS: Mapping[str, Key] = {
    "chain-root": Key("The folder below which chains are found.", path=True, variable="CHAINETTE_CHAIN_ROOT"),
    "runs": Key("The folder of run directories that have no -o, and that `ls` lists.", path=True, variable="CHAINETTE_RUNS"),
    "redis": Key("The fleet's Redis, without a password.", variable="CHAINETTE_REDIS_URL", exported=True),
    "umask": Key("Who may read new files.", variable="CHAINETTE_UMASK", exported=True),
    **{
        _word(name): Key(FLAGS[name].help, kind, FLAGS[name].file or FLAGS[name].folder, _variable(_word(name)))
        for name, kind in get_type_hints(RunSettings).items()
    },
}


def defaults_of(folder: Path, variables: Mapping[str, str]) -> list[Default]:
    """The defaults for commands in a folder: of its chainette.toml, or of the nearest one above it inside the same repository
    or home folder; and of CHAINETTE_* variables.

    Raises:
        SettingsError: the file belongs to another user or is not as it should be; or a value is not.
    """
    found = {default.key: default for default in (*_of_file(folder), *_of_variables(variables))}
    defaults = [found[key] for key in KEYS if key in found]
    for default in defaults:  # alone, so that its origin can be named
        if default.key in _SETTINGS:
            try:
                RunSettings(**{_SETTINGS[default.key]: default.value})
            except InputError as error:
                raise SettingsError(f"{default.origin}: {error}") from None
    return defaults


def _of_file(folder: Path) -> Iterator[Default]:
    path = nearest_file(folder)
    if path is None:
        return
    import tomllib  # noqa: PLC0415 - most folders have no such file

    shown = os.path.relpath(path, folder)
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{shown}: {error}") from None
    if unknown := next(iter(tables.keys() - {"run"}), None):
        raise SettingsError(f"{shown}:{_line(text, unknown)}: there is no {unknown!r}; all keys belong below [run]")
    if not isinstance(tables.get("run", {}), dict):
        raise SettingsError(f"{shown}:{_line(text, 'run')}: run is a table; write [run]")
    for word, value in tables.get("run", {}).items():
        key, origin = word.replace("_", "-"), f"{shown}:{_line(text, word)}"
        if key not in KEYS:
            raise SettingsError(f"{origin}: there is no key {word!r}{nearest(key, KEYS)}")
        yield Default(key, _located(key, _typed(key, value, origin, strict=True), path.parent, folder, origin), origin)


def nearest_file(folder: Path) -> Path | None:
    """The chainette.toml that counts for commands in a folder.

    Raises:
        SettingsError: it belongs to another user.
    """
    home = os.path.expanduser("~")  # noqa: PTH111 - a container's user may have none, which `Path.home` does not take
    for place in (folder, *folder.parents):
        path = place / FILE
        if os.path.isfile(path):  # noqa: PTH113 - False if the folder may not be searched, as below
            if path.stat().st_uid not in (os.geteuid(), 0):
                raise SettingsError(
                    f"{path} belongs to another user, who would choose your settings; remove it, or make it yours"
                )
            return path
        if os.path.exists(place / ".git") or str(place) == home:  # noqa: PTH110
            return None
    return None


def _of_variables(variables: Mapping[str, str]) -> Iterator[Default]:
    for key, declared in KEYS.items():
        if text := variables.get(declared.variable):
            origin = f"${declared.variable}"
            is_list = declared.type == tuple[str, ...]
            words = text.split(os.pathsep if declared.path else None) if is_list else text
            typed = words if declared.exported else _typed(key, words, origin, strict=False)
            yield Default(key, _located(key, typed, Path(), Path(), origin), origin)


def _typed(key: str, value: Any, origin: str, *, strict: bool) -> Any:
    import msgspec  # noqa: PLC0415 - as above

    declared = KEYS[key]
    if declared.type == tuple[str, ...] and isinstance(value, str):
        value = [value]
    try:
        typed = msgspec.convert(value, declared.type, strict=strict)
    except msgspec.ValidationError as error:
        said = re.sub(r" - at `\$.*", "", str(error)).replace("array", "list")
        raise SettingsError(f"{origin}: {key} is {value!r}: {said}") from None
    if key == "redis" and strict and re.search(r"//[^/]*@|[?&]password=", value):
        raise SettingsError(f"{origin}: redis holds a password; put the URL into the environment: {declared.variable}")
    return typed


def _located(key: str, value: Any, base: Path, here: Path, origin: str) -> Any:
    """The value; a path as seen from here, and only if it is there."""
    if not KEYS[key].path or not value:
        return value
    if isinstance(value, tuple):
        return tuple(_located(key, each, base, here, origin) for each in value)
    path = base / os.path.expanduser(value)  # noqa: PTH111 - as above
    if key in ("chain-root", "engines") and not path.exists():
        raise SettingsError(f"{origin}: {key} is {value}, which does not exist")
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _line(text: str, word: str) -> int:
    """The line of a key or a table."""
    pattern = re.compile(rf"""\s*\[*\s*["']?{re.escape(word)}["']?\s*[=\].]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)


def variables_of(defaults: list[Default]) -> dict[str, str]:
    """The variables that carry values to the commands and their children."""
    return {KEYS[default.key].variable: str(default.value) for default in defaults if KEYS[default.key].exported}


def default_map(defaults: list[Default]) -> dict[str, dict[str, Any]]:
    """Command -> parameter -> its default, for those commands the keys are about."""
    values = {default.key: default.value for default in defaults}
    settings = {name: values[key] for key, name in _SETTINGS.items() if key in values}
    anew = {name: value for name, value in settings.items() if name in UNRECORDED - _KEPT}
    root = {"chain_root": values["chain-root"]} if "chain-root" in values else {}
    engines = {name: values["engines"] for name in ("engines_file", "engines", "file") if "engines" in values}
    runs = {"runs": values["runs"]} if "runs" in values else {}
    return {
        **dict.fromkeys(_BEGIN, settings | root | runs),
        **dict.fromkeys(_OPEN, engines | root),
        **dict.fromkeys(("coordinator", "sink"), root),
        **dict.fromkeys(("resume", "rejected"), anew),
        "ls": {"folder": values["runs"]} if "runs" in values else {},
    }
