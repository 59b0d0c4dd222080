"""RunResult: the results of a finished or stopped run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainette.core.plan import Plan
from chainette.errors import RunDirectoryError
from chainette.io.rundir.paths import RunDir
from chainette.io.rundir.reading import require_whole
from chainette.io.rundir.replay import RunState, Status
from chainette.io.tables.schemas import Added, ShardSchemas

if TYPE_CHECKING:
    from datasets import DatasetDict

__all__ = ["RunResult"]


class RunResult:
    """A run directory and its run's status. Reads rows on demand; holds none."""

    def __init__(self, directory: RunDir, state: RunState, plan: Plan) -> None:
        #: The run directory.
        self.dir: Path = directory.path
        self._directory = directory
        self._state = state
        self._plan = plan

    def __repr__(self) -> str:
        return f"RunResult(dir={str(self.dir)!r}, status={self.status.value!r})"

    @property
    def status(self) -> Status:
        """`finished` if every row is accounted for."""
        return self._state.status

    @property
    def metadata(self) -> dict[str, Any]:
        """The content of metadata.json."""
        return self._state.metadata()

    @property
    def redis(self) -> list[str]:
        """The address, without its password, of every Redis that the run used."""
        return sorted(self._state.redis)

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """Per step: in, out, rejected, dropped, stopped, expanded, balanced."""
        steps: dict[str, dict[str, Any]] = self.metadata["steps"]
        return steps

    def rows(self, step: str) -> Iterator[dict[str, Any]]:
        """The rows of a step (or `rejected`, `flattened`) as plain dicts, in the order of the shards.

        Raises:
            RunDirectoryError: no folder of that name was written.
            DamagedRun: a file is not there, or does not hold the bytes that were written.
        """
        folders = {node.id: node.folder for node in self._state.graph.nodes if not node.hidden}
        folders |= {"rejected": "rejected", "flattened": "flattened"}
        if step not in folders:
            raise RunDirectoryError(f"{self.dir} has no rows of {step!r}; it has {', '.join(folders)}")
        return self._read(folders[step])

    def _read(self, folder: str) -> Iterator[dict[str, Any]]:
        from chainette.io.tables.sealed import read_rows

        schemas = self._schemas()
        for number, (_, count) in sorted(self._state.ends.get(folder, {}).items()):
            path = require_whole(self._directory, self._state, folder, number)
            yield from read_rows(path, 0, count, schemas[folder] if path.suffix == ".csv" else None)

    def _schemas(self) -> ShardSchemas:
        return ShardSchemas(self._plan, Added.of(self._state.run.settings))

    def dataset(self) -> DatasetDict:
        """The run as a Hugging Face DatasetDict, one split per folder: in memory, unless its files are Parquet.

        Its columns are those of Parquet, whatever the format: `datasets` would guess others.

        Raises:
            RunDirectoryError: the package `datasets` is not installed.
        """
        try:
            import datasets
        except ImportError as error:
            raise RunDirectoryError("RunResult.dataset() needs the package datasets: pip install datasets") from error
        from chainette.io.tables.sealed import table_of

        names = datasets.get_dataset_config_names(str(self.dir))
        if self._state.run.settings["format"] == "parquet":
            return datasets.DatasetDict({name: datasets.load_dataset(str(self.dir), name, split="train") for name in names})
        schemas = self._schemas()
        return datasets.DatasetDict({name: datasets.Dataset(table_of(self._read(name), schemas[name])) for name in names})
