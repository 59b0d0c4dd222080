"""Simulated runs keep every promise, whatever befalls them. `make simulate SEEDS=10000` runs more of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation
from tests.support.counts import rows
from tests.support.tools import many

ROOT = Path(__file__).parents[2]

#: Blocks of seeds, each in a process of its own, and the seeds of one of them.
BLOCKS = 4
CI_SEEDS = 75
SEEDS = many(50, CI_SEEDS, 500)


def simulate(*flags: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tests.simulation", *flags]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_whatever_befalls_a_simulated_run_its_directory_is_what_its_chain_means(block: int) -> None:
    done = simulate("--seeds", str(SEEDS), "--start", str(block * SEEDS))
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_once_broke_in_simulation_holds() -> None:
    done = simulate("--found")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_seed_is_the_same_run_every_time() -> None:
    one, two = (simulate("--seeds", "5", "--start", "30").stdout.splitlines()[-1] for _ in range(2))
    assert one == two
    assert one.startswith("5 seeds, ")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_bug_fits_the_code_as_it_is(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    assert not mutation.test or (ROOT / mutation.test.split()[0]).exists()


def test_every_planted_bug_stands_on_the_page_of_guarantees_as_caught() -> None:
    cells = [row.strip("| \n").split(" | ") for row in rows("planted bug")]
    assert [(name, file.strip("`")) for name, file, _ in cells] == [(mutation.name, mutation.file) for mutation in MUTATIONS]
    catchers = {caught for _, _, caught in cells}
    assert "nothing" not in catchers
    seeds = [int(caught.removeprefix("seed ")) for caught in catchers if caught.startswith("seed ")]
    assert len(seeds) > 1 and max(seeds) < BLOCKS * CI_SEEDS, "CI must run each of these seeds"
