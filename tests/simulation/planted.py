"""`python -m tests.simulation.planted` (`make mutations`) plants each bug in a copy of the tree, and finds the test for it."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.simulation.mutations import MUTATIONS, Mutation
from tests.support.counts import put, record, rows

__all__ = ["main"]

_ROOT = Path(__file__).parents[2]
_TREE = ("chainette", "workers", "tests", "docs", "examples", "pyproject.toml")


def main() -> int:
    parser = argparse.ArgumentParser("mutations", description=__doc__)
    parser.add_argument("words", nargs="*", help="only bugs with these words in their name")
    parser.add_argument("--seeds", type=int, default=500, help="seeds that are tried unless a named test catches the bug")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="bugs that are tried at the same time")
    parser.add_argument("--rest", action="store_true", help="only bugs that docs/guarantees.md has no row for")
    parser.add_argument("--record", action="store_true", help="write the rows into the table in docs/guarantees.md")
    given = parser.parse_args()
    table = {row.removeprefix("| ").split(" | ")[0]: row for row in rows("planted bug")}
    chosen = [mutation for mutation in MUTATIONS if all(word in mutation.name for word in given.words)]
    if given.rest:
        chosen = [mutation for mutation in chosen if mutation.name not in table]
    survived = 0
    if alone := caught(None, given.seeds):
        print(f"the tree fails as it is: {alone}")
        return 1
    with ThreadPoolExecutor(given.jobs) as pool:
        for mutation, catcher in zip(chosen, pool.map(partial(caught, seeds=given.seeds), chosen), strict=True):
            survived += not catcher
            table[mutation.name] = f"| {mutation.name} | `{mutation.file}` | {catcher or 'nothing'} |\n"
            print(table[mutation.name], end="", flush=True)
            if given.record:
                _write(table, len(chosen))
    print(f"{len(chosen) - survived} of {len(chosen)} planted bugs were caught")
    return int(survived > 0)


def _write(table: Mapping[str, str], tried: int) -> None:
    """Writes the rows of all bugs that were ever tried, and counts them."""
    known = [table[mutation.name] for mutation in MUTATIONS if mutation.name in table]
    put("planted bug", known)
    good = sum(not row.endswith("| nothing |\n") for row in known)
    record("make mutations", f"{good} of {len(MUTATIONS)} planted bugs were caught, {tried} of them tried in this run")


def caught(mutation: Mutation | None, seeds: int) -> str:
    """The seed or test that catches a bug, or fails without one; "" if nothing does."""
    with tempfile.TemporaryDirectory(prefix="chainette-planted-") as folder:
        tree = Path(folder)
        _copy(tree)
        if mutation is not None:
            _plant(mutation, tree)
        found = _by_test(tree, mutation.test) if mutation is not None and mutation.test else ""
        return found or _by_seed(tree, seeds)


def _copy(tree: Path) -> None:
    for name in _TREE:
        source = _ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)


def _plant(mutation: Mutation, tree: Path) -> None:
    file = tree / mutation.file
    text = file.read_text()
    assert text.count(mutation.old) == 1, f"{mutation.name}: {mutation.file} has the text {text.count(mutation.old)} times"
    file.write_text(text.replace(mutation.old, mutation.new))


def _call(tree: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'workers'}"}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False).stdout


def _by_seed(tree: Path, seeds: int) -> str:
    said = _call(tree, "tests.simulation", "--seeds", str(seeds), "--whole")
    found = re.search(r"^seed (\d+):", said, re.MULTILINE)
    return f"seed {found[1]}" if found else ""


def _by_test(tree: Path, test: str) -> str:
    said = _call(tree, "pytest", "-x", "-q", "-p", "no:cacheprovider", *test.split())
    found = re.search(r"^FAILED \S+::(test_\w+)", said, re.MULTILINE)
    return f"`{found[1]}`" if found else ""


if __name__ == "__main__":
    sys.exit(main())
