"""The chains that a long-lived worker has in memory."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import msgspec
import pytest
from chainette_workers.worker import enqueued_chains
from chainette_workers.worker.enqueued_chains import Chains, Reference

from chainette.core.compile import compile_chain
from chainette.core.usercode.loading import load_chain
from chainette.core.usercode.parameters import given
from chainette.errors import ChainetteError
from chainette.io.rundir.chain_marks import marks_of

CHAIN = """
from pydantic import BaseModel
from chainette import Chain, Step, register_engine

class Text(BaseModel):
    text: str

register_engine("sim", model="m", backend="simulated")

def make(tone: str) -> Chain:
    return Chain(name="c", steps=[Step(id=tone, output_model=Text, input_model=Text, engine_name="sim")])
"""

TONES = [f"t{number}" for number in range(8)]


def reference(tone: str, root: Path) -> Reference:
    loaded = load_chain("chain.py:make", root, given({"tone": tone}))
    marks = msgspec.json.encode(marks_of(compile_chain(loaded.chain))).decode()
    loaded.forget()
    parameters = json.dumps({"tone": tone})
    return Reference("chain.py:make", loaded.digest, 64, simulate=False, files=loaded.names, parameters=parameters, marks=marks)


def modules() -> list[str]:
    gc.collect()
    return [name for name in sys.modules if name.startswith("_chainette_")]


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chains:
    monkeypatch.setattr(enqueued_chains, "_MOST", 2)
    (tmp_path / "chain.py").write_text(CHAIN)
    return Chains(tmp_path, ("sim",), None, parameters={"tone": TONES})


def test_the_last_chains_are_remembered_and_the_modules_of_the_others_are_gone(found: Chains) -> None:
    references, before = [reference(tone, found.root) for tone in TONES], len(modules())
    first = found.plan(references[0])
    assert found.plan(references[0]) is first
    of_one = len(modules()) - before
    assert of_one
    del first
    for each in references:
        found.plan(each)
    assert len(modules()) == before + 2 * of_one


def test_a_chain_that_is_in_use_keeps_its_modules(found: Chains) -> None:
    used, *others = [reference(tone, found.root) for tone in TONES]
    plan = found.plan(used)
    for each in others:
        found.plan(each)
    assert plan.input_model.__module__ in modules()
    assert found.plan(used) is not plan


def test_a_chain_that_does_not_fit_together_leaves_no_modules(found: Chains) -> None:
    (found.root / "chain.py").write_text(CHAIN.replace("engine_name=", "user_prompt='{{ nobody }}', engine_name="))
    loaded = load_chain("chain.py:make", found.root, given({"tone": "t0"}))
    before = len(modules())
    with pytest.raises(ChainetteError, match="nobody"):
        found.plan(
            Reference("chain.py:make", loaded.digest, 64, simulate=False, files=loaded.names, parameters='{"tone": "t0"}')
        )
    assert len(modules()) == before
