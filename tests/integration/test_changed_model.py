"""A model that was replaced behind the same settings: noticed at resume and when it is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from unittest import mock

import pytest

from chainette import Chain, Step, register_engine
from chainette.engine.backends import BUILT_IN
from chainette.engine.config import EngineConfig, EngineRegistry, make_config, using_registry
from chainette.engine.llama_cpp.server import LlamaCppEngine, LlamaCppOptions
from chainette.engine.simulated.simulator import SimulatedEngine
from chainette.errors import ChainChanged, RunStopped
from chainette.hooks import Hook
from chainette.io.rundir.event_types import EngineLoaded, Event, UnitCommitted
from chainette.io.rundir.result import RunResult
from chainette.run.executor import resume, retry_rejected
from tests.support.chains import Facts, Text, Word, content, texts


class Answering(SimulatedEngine):
    """Simulated answers, whatever the file holds; a hub or server gives it the revision."""

    options = LlamaCppOptions  # type: ignore[assignment]
    local_parts = LlamaCppEngine.local_parts
    revision: ClassVar[str] = ""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(make_config(config.name, config.model, "simulated"))

    def revisions(self) -> dict[str, str]:
        return {"model": self.revision} if self.revision else {}


class Stops(Hook):
    def on_event(self, event: Event) -> None:
        if isinstance(event, UnitCommitted) and event.root == 2:
            raise KeyError("enough")


class StopsAtLoad(Hook):
    def on_event(self, event: Event) -> None:
        if isinstance(event, EngineLoaded):
            raise KeyError("enough")


@pytest.fixture(autouse=True)
def backends() -> Iterator[None]:
    with mock.patch.dict(BUILT_IN, {"llama_cpp": f"{__name__}:Answering"}):
        yield


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF old weights")
    return path


def chain(model: Path) -> Chain:
    """first (another engine) -> second and third, which ask the model."""
    with using_registry(EngineRegistry()):
        register_engine("other", "none", "simulated")
        register_engine("local", str(model))
        return Chain(
            name="c",
            batch_size=4,
            steps=[
                Step(id="first", input_model=Text, output_model=Facts, engine_name="other"),
                Step(id="second", output_model=Facts, engine_name="local"),
                Step(id="third", output_model=Word, engine_name="local"),
            ],
        )


def begun(model: Path, directory: Path) -> None:
    with pytest.raises(KeyError, match="enough"):
        chain(model).run(texts(16), directory, window=4, hooks=(Stops(),))


def asked(result: RunResult) -> dict[str, int]:
    return {name: result.metadata["steps"][name]["usage"]["requests"] for name in ("first", "second")}


def test_a_model_file_that_was_overwritten_in_place_is_refused_and_recomputed_as_told(tmp_path: Path, model: Path) -> None:
    begun(model, tmp_path / "run")
    log = (tmp_path / "run/events.jsonl").read_bytes()
    model.write_bytes(b"GGUF new weights")
    with pytest.raises(ChainChanged, match=r"the model of engine local changed.*--from second`"):
        resume(tmp_path / "run", chain(model))
    with pytest.raises(ChainChanged, match="--from second"):
        retry_rejected(tmp_path / "run", chain(model))
    with pytest.raises(ChainChanged, match=r"second changed too.*use `--from second`"):
        resume(tmp_path / "run", chain(model), from_step="third")
    assert (tmp_path / "run/events.jsonl").read_bytes() == log
    done = resume(tmp_path / "run", chain(model), from_step="second")
    assert asked(done) == {"first": 16, "second": 16} and done.metadata["balanced"]
    assert resume(tmp_path / "run", chain(model)).metadata["status"] == "finished"


def test_a_model_file_that_was_put_back_goes_on(tmp_path: Path, model: Path) -> None:
    begun(model, tmp_path / "run")
    model.write_bytes(b"GGUF new weights")
    with pytest.raises(ChainChanged):
        resume(tmp_path / "run", chain(model))
    model.write_bytes(b"GGUF old weights")
    assert content(resume(tmp_path / "run", chain(model))) == content(chain(model).run(texts(16), tmp_path / "fresh"))


def test_a_run_that_takes_the_new_model_on_purpose_may_be_stopped_at_any_time(tmp_path: Path, model: Path) -> None:
    begun(model, tmp_path / "run")
    model.write_bytes(b"GGUF new weights")
    with pytest.raises(KeyError, match="enough"):
        resume(tmp_path / "run", chain(model), from_step="second", hooks=(StopsAtLoad(),))
    done = resume(tmp_path / "run", chain(model))
    assert asked(done) == {"first": 16, "second": 16} and done.metadata["balanced"]
    assert done.metadata["engines"]["local"]["identity"]["model"].startswith("16 bytes, sha256")


def test_another_revision_of_a_hub_or_server_stops_the_run_before_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = tmp_path / "hub.gguf"
    monkeypatch.setattr(Answering, "revision", "commit-1")
    begun(away, tmp_path / "run")
    monkeypatch.setattr(Answering, "revision", "commit-2")
    with pytest.raises(RunStopped, match=r"the model of engine local changed.*--from second`"):
        resume(tmp_path / "run", chain(away))
    shutil.copytree(tmp_path / "run", tmp_path / "anew")
    anew = resume(tmp_path / "anew", chain(away), from_step="second")
    assert anew.metadata["engines"]["local"]["identity"] == {"model": "commit-2"}
    monkeypatch.setattr(Answering, "revision", "commit-1")
    done = resume(tmp_path / "run", chain(away))
    assert content(done) == content(chain(away).run(texts(16), tmp_path / "fresh"))
    assert asked(done) == {"first": 16, "second": 16}
