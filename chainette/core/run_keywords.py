"""The keywords of the calls that run a chain, for type checkers and editors; `run/options.py` holds the options."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from chainette.core.run_settings import Format
from chainette.core.usercode.confined import ChainClaim
from chainette.hooks import Hook

if TYPE_CHECKING:
    from chainette.run.options import Drive

__all__ = ["ResumeKeywords", "RunKeywords"]


_Words = str | Sequence[str]
_Folders = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class ResumeKeywords(TypedDict, total=False):
    """The keywords with which a session may go on with a run; `Chain.run` explains them."""

    limit: int | None
    accept: int | None
    reuse: _Folders
    max_reject_rate: float | None
    engine_patience: float
    price: _Words
    budget: _Words
    window: int | None
    select: _Words
    parameters: Mapping[str, Any]
    chain_claim: ChainClaim | None
    hooks: Sequence[Hook]
    drive: Drive | None
    progress: bool


class RunKeywords(ResumeKeywords, total=False):
    """The keywords of `Chain.run`, which explains them: fields of `RunOptions`. Those who wrap it may take the same:

        def nightly(path: str, **options: Unpack[RunKeywords]) -> RunResult:
            return chain.run(path, **options)

    A checker refuses other names and types.
    """

    batch_size: int | None
    seed: int
    format: Format
    max_rows_per_file: int
    flattened: bool
    key: str | None
    columns: Mapping[str, str] | _Words
    usage: bool
    csv_safe: bool
    engines_file: str | os.PathLike[str] | None
    simulate: bool
    dedupe: bool
    no_reuse: _Words
    run_id: str
    chain_ref: str
    chain_root: str
    resume: bool
    more: Sequence[str | os.PathLike[str]]
