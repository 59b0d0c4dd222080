"""`chainette engines`: backends, or the engines of a chain and the steps that use them. Never shows a secret."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from chainette.cli.command_errors import guarded
from chainette.cli.flags import AsJson, ChainRoot, EngineFile, Settings
from chainette.cli.launch import load_plan
from chainette.cli.printing import print_json
from chainette.cli.screen.tables import console, new_table
from chainette.core.run_settings import RunSettings
from chainette.engine.backends import backend_class, backend_names, maker_of
from chainette.engine.config import EngineConfig, EngineRegistry, public_url, using_registry
from chainette.engine.registry import load_engines
from chainette.errors import EngineConfigError, PluginError
from chainette.records import declared_of
from chainette.run.planning import registry_of
from chainette.utils.plugins import HOOKS, PROMPT_BUILDERS

__all__ = ["engines"]


@guarded
def engines(
    chain: Annotated[str | None, typer.Argument(metavar="[CHAIN]", help="A chain; without it the backends are listed.")] = None,
    settings: Settings = None,
    file: EngineFile = None,
    chain_root: ChainRoot = Path(),
    as_json: AsJson = False,
) -> None:
    """List backends and other plugins, or the engines of CHAIN.

    With CHAIN or --engines FILE: the engines declared there, and the steps that use them. No engine is opened.
    """
    if chain is None and file is None:
        plugins = [*_backends(), *_others()]
        if as_json:
            print_json(plugins)
        else:
            _list_plugins(plugins)
        return
    found = [*_engines(chain, settings, file, chain_root)]
    if as_json:
        print_json(config.describe() | {"steps": steps} for config, steps in found)
    else:
        _list_engines(found)


def _backends() -> Iterator[dict[str, Any]]:
    """Every backend, with the reason if it does not work here."""
    for name in backend_names():
        found: dict[str, Any] = {
            "kind": "backend",
            "name": name,
            "from": maker_of(name),
            "here": True,
            "why_not": "",
            "keys": [],
        }
        try:
            backend = backend_class(name)
        except EngineConfigError as error:
            yield found | {"here": False, "why_not": str(error)}
            continue
        missing = backend.package if backend.package and not find_spec(backend.package) else ""
        why = f"pip install {missing}" if missing else ""
        yield found | {"here": not missing, "why_not": why, "keys": [*backend.options.__struct_fields__]}


def _others() -> Iterator[dict[str, Any]]:
    """Prompt builders and hooks of plugins."""
    for group in (PROMPT_BUILDERS, HOOKS):
        for name in group.names():
            why = ""
            try:
                group.load(name)
            except PluginError as error:
                why = str(error)
            yield {"kind": group.kind, "name": name, "from": group.maker_of(name), "here": not why, "why_not": why}


def _list_plugins(plugins: Iterable[Mapping[str, Any]]) -> None:
    backends, others = new_table(("backend", "from", "here", "own keys")), new_table(("plugin", "name", "from", "here"))
    for found in plugins:
        here = "yes" if found["here"] else f"no: {found['why_not']}"
        if found["kind"] == "backend":
            backends.add_row(found["name"], found["from"], here, ", ".join(found["keys"]))
        else:
            others.add_row(found["kind"], found["name"], found["from"], here)
    console().print(backends)
    if others.row_count:
        console().print(others)


def _engines(
    chain: str | None, settings: list[str] | None, file: Path | None, chain_root: Path
) -> Iterator[tuple[EngineConfig, list[str]]]:
    """The engines of a chain or a file, with the steps that use them."""
    users: dict[str, list[str]] = {}
    configs: Iterable[EngineConfig]
    if chain is None:
        with using_registry(EngineRegistry()):
            configs = load_engines(file or "")
    else:
        loaded, plan = load_plan(chain, chain_root, settings, RunSettings(engines_file=str(file) if file else None))
        for node in plan.stations.values():
            if declared_of(node.id) == node.id:  # no later round of a loop
                users.setdefault(node.engine, []).append(node.id)
        configs = registry_of(loaded.chain, file)
    for config in configs:
        yield config, users.get(config.name, [])


def _list_engines(engines: Iterable[tuple[EngineConfig, list[str]]]) -> None:
    table = new_table(("engine", "backend", "model", "endpoint", "capacity", "key from", "exclusive", "steps"))
    for config, steps in engines:
        table.add_row(
            config.name,
            config.backend,
            config.model,
            "\n".join(map(public_url, config.endpoint)),
            str(config.capacity or "auto"),
            f"${config.api_key_env}" if config.api_key_env else "",
            "yes" if config.exclusive else "",
            ", ".join(steps) or "-",
        )
    console().print(table if table.row_count else "no engines")
