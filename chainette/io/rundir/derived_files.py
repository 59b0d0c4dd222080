"""The files derived from the log: graph.json, metadata.json, the dataset card and the columns of its folders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from chainette.io.rundir.card import CardConfig, render_card, shards_digest
from chainette.io.rundir.metadata import metadata_of
from chainette.io.rundir.paths import RunDir, publish_all
from chainette.io.rundir.run_state import RunState
from chainette.io.tables.features import columns_of
from chainette.io.tables.schema_file import schema_file

__all__ = ["pretty", "publish_metadata", "render_files"]


def publish_metadata(directory: RunDir, state: RunState) -> None:
    """Writes the derived files, each whole or not at all; a crash may leave some of them unchanged.

    Raises:
        DiskError: the disk is full, or a write failed.
    """
    publish_all({directory.path / name: data for name, data in render_files(state).items()})


def render_files(state: RunState) -> dict[str, bytes]:
    """File name -> content. A pure function: the same log gives the same bytes."""
    run = state.run
    configs = [_config(state, folder, description) for folder, description in _folders(state)]
    card = render_card(title=run.chain, run_id=run.run_id, status=state.status, format=run.settings["format"], configs=configs)
    if run.settings.get("csv_safe") and run.settings["format"] == "csv":
        card += "\nText that a spreadsheet would run as a formula has a `'` before it (`--csv-safe`).\n"
    files = {"graph.json": pretty(state.graph), "metadata.json": pretty(metadata_of(state)), "README.md": card.encode()}
    return files | _schemas(configs, run.settings["format"])


def _schemas(configs: Iterable[CardConfig], format: str) -> dict[str, bytes]:
    """The columns of every folder with rows, for readers of formats without types."""
    if format == "parquet":
        return {}
    return {
        f".schema/{config.folder}.parquet": schema_file(columns_of(config.features), format)
        for config in configs
        if config.rows and config.features
    }


def _folders(state: RunState) -> list[tuple[str, str]]:
    folders = [(node.folder, f"output rows of {node.id}") for node in state.graph.steps if not node.hidden]
    return [
        *folders,
        ("flattened", "one row per finished item, across all steps"),
        ("rejected", "rows that were rejected, with the reason"),
    ]


def _config(state: RunState, folder: str, description: str) -> CardConfig:
    """The entry on the card for a folder with readable shards."""
    ends = state.shards.ends.get(folder, {})
    features = state.graph.features.get(folder)
    if state.run.settings["format"] != "jsonl":
        ends = {number: end for number, end in ends.items() if number in state.shards.sealed.get(folder, {})}
    digest = shards_digest(state.run.run_id, folder, ends)
    return CardConfig(folder, folder, sum(rows for _, rows in ends.values()), digest, description, features)


def pretty(value: Any) -> bytes:
    """JSON for people."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
