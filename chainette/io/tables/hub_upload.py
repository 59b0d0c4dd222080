"""Exports to the Hugging Face Hub: a folder with a dataset card becomes a data set in one commit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chainette.errors import RunError
from chainette.utils.hub_errors import hub_errors

__all__ = ["upload"]

#: Files that a new data set may have.
_EMPTY = {".gitattributes"}
_CARD = "README.md"


def upload(folder: Path, repo: str, run_id: str, *, private: bool) -> str:
    """Uploads a folder as the content of a data set, which is created if it does not exist; returns its URL.

    Large files are sent first, and one commit at the end makes all files visible at once. Files that the hub already has,
    for example from an interrupted upload, are not sent again. Earlier rows of the same run are replaced.

    Raises:
        RunError: the data set holds anything but rows of this run, or the hub refused.
    """
    with hub_errors(f"hf:{repo}", RunError, "cannot be written"), _bars_on_terminals():
        from huggingface_hub import HfApi, hf_hub_download

        api = HfApi()
        address = str(api.create_repo(repo, repo_type="dataset", private=private or None, exist_ok=True))
        there = {*api.list_repo_files(repo, repo_type="dataset")} - _EMPTY
        if there:
            card = Path(hf_hub_download(repo, _CARD, repo_type="dataset")).read_text(encoding="utf-8") if _CARD in there else ""
            if run_id not in card:
                raise RunError(f"hf:{repo} holds data that is not from run {run_id}; name a new data set")
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type="dataset",
            commit_message=f"Rows of run {run_id}",
            delete_patterns="data/*",
        )
    return address


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """Turns off the progress bars of the hub's library, unless stderr is a terminal: it draws them into logs and pipes too."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled() or sys.stderr.isatty():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
