"""Data sets of the Hugging Face Hub as inputs: `hf:OWNER/NAME`, `hf:OWNER/NAME/SPLIT`, `hf:OWNER/NAME@REVISION/CONFIG/SPLIT`.

Rows are streamed by `datasets`, only as far as the run reads. The log records the commit, so that a later session reads the
same rows. The hub's address and token are those of `datasets` (`HF_ENDPOINT`, `HF_TOKEN`, `hf auth login`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeGuard

from chainette.errors import InputError
from chainette.utils.argument_advice import nearest
from chainette.utils.hub_errors import hub_errors

__all__ = ["HubRows", "is_hub"]

_NAME = re.compile(
    r"hf:(?P<repo>[^/@\s]+(?:/[^/@\s]+)?)(?:@(?P<revision>[^/\s]+))?(?:/(?P<config>[^/\s]+))??(?:/(?P<split>[^/\s]+))?"
)


def is_hub(source: object) -> TypeGuard[str]:
    """Whether an input is a data set of the hub, as opposed to `hf://`, a URL of files there."""
    return isinstance(source, str) and source.startswith("hf:") and not source.startswith("hf://")


@dataclass(frozen=True)
class HubRows:
    """The rows of a split, in the order of its files. It asks the hub whenever it is iterated, and once for `columns`."""

    repo: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None

    @classmethod
    def of(cls, name: str) -> HubRows:
        """The data set with this name.

        Raises:
            InputError: the name does not have the form of one.
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise InputError(f"{name}: write hf:OWNER/NAME, hf:OWNER/NAME/SPLIT or hf:OWNER/NAME@REVISION/CONFIG/SPLIT")
        return cls(**found.groupdict())

    @classmethod
    def pinned(cls, name: str) -> HubRows:
        """The data set with this name, at the current commit of its revision, with its configuration and split chosen.

        Raises:
            InputError: the hub does not have the data set or cannot be reached, or the data set has several splits and the
                name has none.
        """
        found = cls.of(name)
        with found._asking():
            import datasets
            from huggingface_hub import HfApi

            found = replace(found, revision=HfApi().dataset_info(found.repo, revision=found.revision).sha)
            configs = datasets.get_dataset_config_names(found.repo, revision=found.revision)
            config = found._chosen("config", configs, "default")
            splits = datasets.get_dataset_split_names(found.repo, config, revision=found.revision)
            return replace(found, config=config, split=found._chosen("split", splits))

    def _chosen(self, kind: str, known: Sequence[str], default: str = "") -> str:
        """The configuration or the split that was named, or the only one."""
        named = getattr(self, kind)
        if named is None and (len(known) == 1 or default in known):
            return known[0] if len(known) == 1 else default
        if named not in known:
            fault = f"has no {kind} {named!r}{nearest(named, known)}" if named else f"has several {kind}s"
            form = f"hf:{self.repo}/{'CONFIG/' * (kind == 'config')}SPLIT"
            raise InputError(f"{self}: it {fault}; write {form} with one of {', '.join(known)}")
        return str(named)

    def __str__(self) -> str:
        parts = [f"hf:{self.repo}{f'@{self.revision}' if self.revision else ''}", self.config, self.split]
        return "/".join(filter(None, parts))

    def is_of(self, name: str) -> bool:
        """Whether a name, complete or not, refers to this data set."""
        other = HubRows.of(name)
        pairs = [(getattr(self, key), getattr(other, key)) for key in ("repo", "config", "split")]
        return all(wanted in (None, mine) for mine, wanted in pairs)

    @property
    def origin(self) -> dict[str, Any]:
        """The log entry with which the data set can be opened again."""
        return {"hub": str(self)}

    @property
    def columns(self) -> list[str]:
        """The columns of every row; [] if they are known only from the rows."""
        with self._asking():
            return list(self._dataset.column_names or ())

    @cached_property
    def _dataset(self) -> Any:
        import datasets

        return datasets.load_dataset(self.repo, self.config, split=self.split, revision=self.revision, streaming=True)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        with self._asking():
            yield from self._dataset

    def _asking(self) -> AbstractContextManager[None]:
        return hub_errors(str(self), InputError, "cannot be read")
