"""`chainette inspect` and `chainette inspect-dag`: the nodes of a chain, and everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from chainette.cli.command_errors import guarded, warn
from chainette.cli.flags import AsJson, ChainRef, ChainRoot, Settings
from chainette.cli.launch import load_plan
from chainette.cli.printing import print_json, show_path, tell
from chainette.cli.screen.tables import console, new_table
from chainette.cli.screen.tree import draw
from chainette.cli.signature import Only
from chainette.core.chain_drawing import describe_engines, describe_folder, describe_models, describe_rows, render_mermaid
from chainette.core.plan import Plan
from chainette.core.plan_node import PlanNode
from chainette.core.run_settings import RunSettings
from chainette.core.unbounded_fields import unbounded_outputs
from chainette.core.usercode.loading import LoadedChain
from chainette.core.usercode.parameters import text_of
from chainette.engine.preflight import foreseen
from chainette.errors import PlanError, Problem
from chainette.io.rundir.graph_of_plan import graph_of
from chainette.utils.plurals import counted

__all__ = ["inspect", "inspect_dag"]


WithEngines = Annotated[RunSettings, Only({"engines_file"})]


@guarded
def inspect(
    chain: ChainRef,
    parameters: Settings = None,
    as_yaml: Annotated[
        bool,
        typer.Option(
            "--as-yaml", help="Print CHAIN as a chain.yml; parts that YAML cannot express are listed, with exit code 1."
        ),
    ] = False,
    as_json: AsJson = False,
    *,
    settings: WithEngines,
    chain_root: ChainRoot = Path(),
) -> None:
    """Check CHAIN without running it; list its nodes, and the parameters that --set can give.

    Each problem is shown with its file and line, and the exit code is then 2. No engine is opened; anything that would keep
    one from opening on this machine, such as a missing model file, is a warning.
    """
    if as_json and as_yaml:
        raise typer.BadParameter("--as-yaml and --json exclude each other; give one")
    try:
        loaded, plan = load_plan(chain, chain_root, parameters, settings)
    except PlanError as error:
        if as_json:
            print_json([{"chain": error.chain, "problems": _problems(error.problems)}])
        raise
    if as_yaml:
        _print_yaml(loaded)
        return
    warnings = [*plan.warnings, *_foreseen(plan), *unbounded_outputs(plan)]
    if as_json:
        print_json([_described(loaded, plan) | {"problems": _problems(warnings)}])
        return
    warn(warnings)
    screen = console()
    nodes = counted(len(plan.steps), "node")
    accepted = f", stops after {counted(plan.accept, 'accepted row')}" if plan.accept is not None else ""
    screen.print(f"chain {plan.chain}: {nodes}, input {plan.input_model.__name__}, batch size {plan.batch_size}{accepted}")
    screen.print()
    if loaded.declared:
        screen.print(_parameters_table(loaded))
        screen.print()
    screen.print(_nodes_table(plan))
    screen.print()
    screen.print("no problems" + (f", {counted(len(warnings), 'warning')}" if warnings else ""))


def _described(loaded: LoadedChain, plan: Plan) -> dict[str, Any]:
    return {
        "chain": plan.chain,
        "input": plan.input_model.__name__,
        "batch_size": plan.batch_size,
        "accept": plan.accept,
        "parameters": [
            {
                "name": parameter.name,
                "type": parameter.written,
                "required": parameter.required,
                "value": loaded.parameters.get(parameter.name),
            }
            for parameter in loaded.declared
        ],
        "nodes": [_node(node) for node in plan.steps],
    }


def _node(node: PlanNode) -> dict[str, Any]:
    taken, given = describe_models(node)
    return {
        "id": node.id,
        "kind": node.kind,
        "branch": list(node.path),
        "takes": taken,
        "gives": given,
        "engines": list(node.engines),
        "folder": node.folder,
        "rows": describe_rows(node),
    }


def _problems(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    return [
        {
            "warning": problem.warning,
            "message": problem.message,
            "file": show_path(problem.place.file) if problem.place else None,
            "line": problem.place.line if problem.place else None,
        }
        for problem in problems
    ]


def _print_yaml(loaded: LoadedChain) -> None:
    from chainette.core.document.chain_writer import as_yaml  # noqa: PLC0415 - pyyaml, for this flag only

    text, unsaid = as_yaml(loaded.chain)
    tell(text.rstrip())
    for words in unsaid:
        tell(f"not written: {words}", err=True)
    if unsaid:
        raise typer.Exit(1)


def _foreseen(plan: Plan) -> list[Problem]:
    """Warnings about engines that could not be opened on this machine."""
    return [Problem(said, None, warning=True) for config in plan.engines.values() for said in foreseen(config)]


def _parameters_table(loaded: LoadedChain) -> Table:
    table = new_table(("parameter", "type", "value", "default"))
    for parameter in loaded.declared:
        value = loaded.parameters.get(parameter.name)
        default = "(must be given)" if parameter.required else parameter.shown(parameter.default)
        table.add_row(parameter.name, parameter.written, text_of(value), default)
    return table


def _nodes_table(plan: Plan) -> object:
    table = new_table(("node", "branch", "takes", "gives", "engine", "notes"))
    for node in plan.steps:
        taken, given = describe_models(node)
        notes = ", ".join(filter(None, [describe_rows(node), describe_folder(node)]))
        table.add_row(node.id, "/".join(node.path), taken, given, describe_engines(node), notes)
    return table


@guarded
def inspect_dag(
    chain: ChainRef,
    icons: Annotated[bool, typer.Option("--icons/--no-icons", help="Icons and box characters, or plain ASCII.")] = True,
    max_branches: Annotated[
        int | None, typer.Option("--max-branches", metavar="N", min=0, help="Fold all but the first N parallel branches.")
    ] = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart instead of a tree.")] = False,
    as_json: AsJson = False,
    parameters: Settings = None,
    *,
    settings: WithEngines,
    chain_root: ChainRoot = Path(),
) -> None:
    """Draw CHAIN."""
    if as_json and (mermaid or max_branches is not None):
        raise typer.BadParameter("--json prints the whole chain; leave out --mermaid and --max-branches")
    _, plan = load_plan(chain, chain_root, parameters, settings)
    warn(plan.warnings)
    if as_json:
        print_json([graph_of(plan)])
    elif mermaid:
        tell(render_mermaid(plan, max_branches))
    else:
        tell(draw(plan, max_branches, icons=icons))
