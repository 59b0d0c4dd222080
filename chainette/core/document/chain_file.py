"""A chain file in YAML as a module with one variable, so that everything else takes it as chain.py."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType

from chainette.core.document.code import Code
from chainette.core.document.declarations import chain_of
from chainette.core.document.yaml_parts import parts_of
from chainette.core.usercode.importer import PrivateImporter
from chainette.errors import LoadError

__all__ = ["MOST_BYTES", "run_chain_file"]

#: Bytes of a chain file.
MOST_BYTES = 1 << 20


def run_chain_file(file: Path, root: Path, importer: PrivateImporter) -> ModuleType:
    """A module whose `chain` is the chain the file declares.

    Raises:
        LoadError: the file is wrong, at its line, or is not the one that was enqueued.
    """
    data = file.read_bytes()
    if len(data) > MOST_BYTES:
        raise LoadError(f"{file} has {len(data):,} bytes; a chain file has at most {MOST_BYTES:,}")
    if importer.allowed is not None and importer.allowed.get(str(file)) != hashlib.sha256(data).hexdigest():
        raise LoadError(f"{file} is not among the files that were enqueued, or has changed since")
    importer.sources[str(file)] = data
    module = ModuleType(f"{importer.name}.{file.stem.replace('.', '_')}")
    module.__file__ = str(file)
    vars(module)["chain"] = chain_of(parts_of(file, data), Code(file, root, importer))
    return module
