"""`chainette engines`: backends, or the engines of a chain and the steps that use them. Never shows a secret."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from chainette.cli.common import console, guarded, new_table
from chainette.cli.flags import ChainRoot, EngineFile, Settings
from chainette.cli.launch import load_plan
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
) -> None:
    """List backends and other plugins, or the engines of CHAIN.

    With CHAIN or --engines FILE: the engines declared there, and the steps that use them. No engine is opened.
    """
    if chain is None and file is None:
        _list_backends()
    elif chain is None:
        with using_registry(EngineRegistry()):
            _list_engines(load_engines(file or ""), {})
    else:
        loaded, plan = load_plan(chain, chain_root, settings, RunSettings(engines_file=str(file) if file else None))
        users: dict[str, list[str]] = {}
        for node in plan.stations.values():
            if declared_of(node.id) != node.id:  # a later round of a loop
                continue
            users.setdefault(node.engine, []).append(node.id)
        _list_engines(registry_of(loaded.chain, file), users)


def _list_backends() -> None:
    table = new_table(("backend", "from", "here", "own keys"))
    for name in backend_names():
        try:
            kind = backend_class(name)
        except EngineConfigError as error:
            table.add_row(name, maker_of(name), f"no: {error}", "")
            continue
        here = "yes" if not kind.package or find_spec(kind.package) else f"no: pip install {kind.package}"
        table.add_row(name, maker_of(name), here, ", ".join(kind.options.__struct_fields__))
    console().print(table)
    _list_others()


def _list_others() -> None:
    """Prompt builders and hooks of plugins, if there are any."""
    table = new_table(("plugin", "name", "from", "here"))
    for group in (PROMPT_BUILDERS, HOOKS):
        for name in group.names():
            try:
                group.load(name)
                here = "yes"
            except PluginError as error:
                here = f"no: {error}"
            table.add_row(group.kind, name, group.maker_of(name), here)
    if table.row_count:
        console().print(table)


def _list_engines(configs: Iterable[EngineConfig], users: dict[str, list[str]]) -> None:
    table = new_table(("engine", "backend", "model", "endpoint", "capacity", "key from", "exclusive", "steps"))
    for config in configs:
        table.add_row(
            config.name,
            config.backend,
            config.model,
            "\n".join(map(public_url, config.endpoint)),
            str(config.capacity or "auto"),
            f"${config.api_key_env}" if config.api_key_env else "",
            "yes" if config.exclusive else "",
            ", ".join(users.get(config.name, [])) or "-",
        )
    console().print(table if table.row_count else "no engines")
