"""`chainette export`: the rows of a run as files for other tools."""

from __future__ import annotations

from collections.abc import Sized
from typing import Annotated

import typer

from chainette.cli.command_errors import guarded
from chainette.cli.flags import RunDirectory
from chainette.cli.printing import tell
from chainette.io.rundir.result import open_run
from chainette.io.tables.exported_files import ExportFormat
from chainette.utils.plurals import counted
from chainette.utils.remote_files import is_url, shown_url

__all__ = ["export"]


@guarded
def export(
    directory: RunDirectory,
    step: Annotated[str, typer.Argument(metavar="[STEP]", help="The step whose rows are written.")] = "flattened",
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FOLDER", help="A new or empty folder, or a URL.")
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            "--push", metavar="OWNER/NAME", help="With --to hf: a data set of the Hugging Face Hub in place of FOLDER."
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: nobody else sees the data set, if it is new.")
    ] = False,
    to: Annotated[ExportFormat, typer.Option("--to", help="The format; hf: Parquet with a dataset card.")] = "parquet",
    ordered: Annotated[bool, typer.Option("--sorted", help="By row id; otherwise in the order of the shards.")] = False,
    rows_per_file: Annotated[
        int, typer.Option("--rows-per-file", metavar="N", min=1, help="Begin another file after N rows.")
    ] = 1_000_000,
) -> None:
    """Write the rows of the run in DIR into FOLDER, as train-00000-of-00012.parquet and so on, or to the Hugging Face Hub.

    FOLDER may be a URL (s3://, gs://, az://, ...), if the package for its protocol is installed. Files get their names
    there when all have been sent. With --push, the data set changes in one commit. The same command continues an
    interrupted upload. Memory is bounded, also with --sorted.
    """
    if (output is None) == (push is None):
        raise typer.BadParameter("name the place of the rows: -o FOLDER, or --to hf --push OWNER/NAME")
    if (push is not None and to != "hf") or (private and push is None):
        raise typer.BadParameter("--push writes a data set with its card: --to hf --push OWNER/NAME [--private]")
    result = open_run(directory)
    if push is not None:
        address = result.push(push, step, private=private, ordered=ordered, rows_per_file=rows_per_file)
        tell(address)
        return
    assert output is not None
    if not is_url(output):
        files = result.export(output, to, step, ordered=ordered, rows_per_file=rows_per_file)
        tell(_told(files, output))
        return
    addresses = result.upload(output, to, step, ordered=ordered, rows_per_file=rows_per_file)
    tell(_told(addresses, shown_url(output)))


def _told(files: Sized, place: str) -> str:
    return f"{counted(len(files), 'file')} in {place}"
