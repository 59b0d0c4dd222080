"""Paths in the log: relative to the chain root or the run directory, so that a moved project can be resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chainette.core.usercode.confined import YAML
from chainette.io.rundir.event_types import RunCreated
from chainette.io.rundir.paths import RunDir

__all__ = ["chain_root_of", "input_paths", "placed_below", "placed_input", "way_to"]


def placed_below(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> str | None:
    """The path relative to a folder; None if it is not below the folder. Symbolic links are not resolved."""
    folder = Path(root).resolve()
    for place in (_plain(path), _resolved(path)):
        if place.is_relative_to(folder):
            return place.relative_to(folder).as_posix()
    return None


def _plain(path: str | os.PathLike[str]) -> Path:
    """The absolute path without "..", as the user gave it."""
    place = Path(path).absolute()
    return _resolved(place) if ".." in place.parts else place


def _resolved(path: str | os.PathLike[str]) -> Path:
    place = Path(path).absolute()
    return place.parent.resolve() / place.name


def placed_input(identity: Mapping[str, Any], directory: RunDir, chain_root: str) -> dict[str, Any]:
    """The identity of an input with paths for the log, which are all relative to one folder, or absolute."""
    paths = [identity["path"], *identity.get("sources", ())]
    for below, root in (("run", str(directory.path)), ("chain", chain_root)):
        placed = [placed_below(path, root) for path in paths] if root else [None]
        if None not in placed:
            sources = {"sources": placed[1:]} if "sources" in identity else {}
            return {**identity, "path": placed[0], **sources, "below": below}
    absolute = [str(_plain(path)) for path in paths]
    return {**identity, "path": absolute[0], **({"sources": absolute[1:]} if "sources" in identity else {})}


def input_paths(recorded: Mapping[str, Any], directory: RunDir, chain_root: Path) -> list[Path]:
    """The current paths of the input of a run."""
    root = {"run": directory.path, "chain": chain_root}.get(recorded.get("below", ""), Path())
    return [root / path for path in recorded.get("sources") or [recorded["path"]]]


def way_to(chain_root: str, directory: RunDir) -> str:
    """The chain root relative to the run directory; "" if there is none."""
    return os.path.relpath(Path(chain_root).resolve(), directory.path.resolve()) if chain_root else ""


def chain_root_of(run: RunCreated, directory: RunDir) -> Path:
    """The current chain root of a run: its old location or, if that is gone, the same location relative to the directory."""
    there = Path(run.chain_root)
    if not run.way_to_chain or _has_chain(there, run.chain_ref):
        return there
    moved = (directory.path.resolve() / run.way_to_chain).resolve()
    return moved if _has_chain(moved, run.chain_ref) else there


def _has_chain(root: Path, reference: str) -> bool:
    target = root / reference.rpartition(":")[0]
    return target.exists() if target.suffix in (".py", *YAML) else root.is_dir()  # a module may be installed
