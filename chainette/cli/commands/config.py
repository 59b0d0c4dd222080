"""`chainette config`: the defaults of this folder's commands, and their origins."""

from __future__ import annotations

from typing import Any

import typer

from chainette.cli.command_errors import guarded
from chainette.cli.flags import AsJson
from chainette.cli.printing import print_json
from chainette.cli.project_file import FILE, KEYS
from chainette.cli.screen.record import cell
from chainette.cli.screen.tables import console, new_table
from chainette.fleet.redis.connect import shown

__all__ = ["config"]


@guarded
def config(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the defaults that chainette.toml and CHAINETTE_* variables give to the flags of commands in this folder.

    Keys without a value keep the default of their flag. Flags win over variables, and variables over the file.
    """
    found = {default.key: default for default in context.obj}
    rows: list[dict[str, Any]] = []
    for key, declared in KEYS.items():
        value = found[key].value if key in found else None
        value = shown(value) if key == "redis" and value else value
        origin = found[key].origin if key in found else None
        rows.append({"key": key, "value": value, "from": origin, "variable": declared.variable, "help": declared.help})
    if as_json:
        print_json(rows)
        return
    table = new_table(("key", "value", "from", "variable"))
    for row in rows:
        table.add_row(row["key"], cell(row["value"]), row["from"] or "", row["variable"])
    console().print(table)
    if not found:
        console().print(f"no {FILE} here or above, and no variable of these")
