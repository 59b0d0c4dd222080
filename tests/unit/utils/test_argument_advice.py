"""Arguments that do not exist: the message shows the right form, with the user's own file and line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from chainette import ApplyNode, Branch, Chain, JoinBranch, SamplingParams, Step, apply, register_engine
from chainette.engine.config import EngineRegistry, using_registry
from chainette.errors import ChainetteError, EngineConfigError, UnknownEngine
from chainette.run.executor import RunOptions


class Text(BaseModel):
    text: str


def same(item: Text) -> Text:
    return item


NODE = apply(same, id="node")
STEP = {"id": "ask", "output_model": Text, "engine_name": "llm"}


def refused(call: Callable[..., Any], *arguments: Any, **keys: Any) -> str:
    """The message, without the place; it is both a ChainetteError and a TypeError."""
    with pytest.raises(TypeError) as caught:
        call(*arguments, **keys)
    assert isinstance(caught.value, ChainetteError) and caught.value.exit_code == 2
    place, _, said = str(caught.value).partition(": ")
    assert re.fullmatch(rf"{re.escape(__file__)}:\d+", place)
    return said


@pytest.mark.parametrize(
    ("keys", "advice"),
    [
        ({"temperature": 0.2}, "no parameter 'temperature'; write sampling=SamplingParams(temperature=0.2)"),
        (
            {"temperature": 0.2, "max_tokens": 9},
            "no parameter 'temperature' and 'max_tokens'; write sampling=SamplingParams(temperature=0.2, max_tokens=9)",
        ),
        ({"max_new_tokens": 9}, "write sampling=SamplingParams(max_tokens=9)"),
        ({"engine": "llm"}, "write engine_name='llm'"),
        ({"prompt": "Hi {{ text }}"}, "write user_prompt='Hi {{ text }}'"),
        ({"system": "Be brief"}, "write system_prompt='Be brief'"),
        ({"output": Text}, "write output_model=Text"),
        ({"response_model": Text}, "write output_model=Text"),
        ({"model": "gpt-4.1"}, "the language model goes into register_engine(name, model=...)"),
        ({"retries": 5}, "write max_attempts=5"),
        ({"messages": []}, "write prompt_builder=..."),
        ({"batch_size": 8}, "write Chain(batch_size=8, ...)"),
        ({"outputmodel": Text}, "no parameter 'outputmodel'; did you mean 'output_model'?"),
        ({"yield_outputs": False}, "did you mean 'yield_output'?"),
        ({"Emoji": "x"}, "did you mean 'emoji'?"),
        ({"zzz": 1, "engine": "llm"}, "no parameter 'zzz'; known: dedupe, emoji, engine_name,"),
    ],
)
def test_a_step_says_what_to_write_for_a_wrong_parameter(keys: dict[str, Any], advice: str) -> None:
    said = refused(Step, **STEP | keys)
    assert said.startswith("Step: ") and advice in said


def test_missing_arguments_are_named() -> None:
    assert refused(Step, id="ask") == "Step: 'output_model' and 'engine_name' must be given"
    assert refused(Chain, name="c") == "Chain: 'steps' must be given"
    assert refused(Branch, "b") == "Branch: 'steps' must be given"
    assert refused(ApplyNode) == "ApplyNode: 'fn' must be given"


def test_the_inputs_of_a_run_are_asked_for_by_name() -> None:
    chain = Chain(name="c", steps=[NODE])
    assert refused(chain.run, input="rows.jsonl") == "run: 'inputs' must be given"
    assert refused(chain.run_iter, data=[]) == "run_iter: 'inputs' must be given"
    assert refused(chain.run, "rows.jsonl", "out", "csv").startswith("run: it takes 2 positional arguments; write run(inputs,")
    assert refused(register_engine, "llm", temperature=0.2) == "register_engine: 'model' must be given"


def test_too_many_positional_arguments_are_answered_with_the_keywords() -> None:
    positional = "it takes no positional arguments; write"
    assert refused(Step, "ask") == f"Step: {positional} Step(id=..., output_model=..., engine_name=...)"
    assert refused(Chain, [NODE]) == f"Chain: {positional} Chain(name=..., steps=...)"
    assert refused(SamplingParams, 0.2) == f"SamplingParams: {positional} SamplingParams(temperature=...)"
    assert refused(Branch, "b", [NODE], "alias") == "Branch: it takes 2 positional arguments; write Branch(name, steps)"
    assert refused(ApplyNode, same, "id") == "ApplyNode: it takes 1 positional argument; write ApplyNode(fn)"
    assert refused(apply, same, "id") == "apply: it takes 1 positional argument; write apply(fn)"


@pytest.mark.parametrize(
    ("call", "keys", "advice"),
    [
        (Chain, {"name": "c", "nodes": [NODE]}, "write steps=..."),
        (Chain, {"name": "c", "steps": [NODE], "seed": 3}, "write chain.run(inputs, seed=3)"),
        (Chain, {"name": "c", "steps": [NODE], "engine": "llm"}, "write engine_name='llm' in each Step"),
        (Chain, {"name": "c", "steps": [NODE], "batchsize": 3}, "did you mean 'batch_size'?"),
        (Branch, {"name": "b", "nodes": [NODE]}, "write steps=..."),
        (Branch, {"name": "b", "steps": [NODE], "alias": "x"}, "write Branch(...).join('x')"),
        (JoinBranch, {"name": "b", "steps": [NODE], "as_": "x"}, "write alias='x'"),
        (JoinBranch, {"name": "b", "steps": [NODE], "alis": "x"}, "did you mean 'alias'?"),
        (ApplyNode, {"func": same}, "write fn=..."),
        (apply, {"fn": same, "output": Text}, "write output_model=Text"),
        (apply, {"fn": same, "nam": "x"}, "did you mean 'name'?"),
        (SamplingParams, {"max_new_tokens": 5}, "write max_tokens=5"),
        (SamplingParams, {"temprature": 5}, "did you mean 'temperature'?"),
        (RunOptions, {"fmt": "csv"}, "run options: no parameter 'fmt'; write format='csv'"),
        (RunOptions, {"output": "out"}, "write output_dir='out'"),
        (RunOptions, {"workers": 4}, "write drive=LocalFleet(4) of chainette_workers.sink.local_fleet"),
        (RunOptions, {"max_lines_per_file": 9}, "write max_rows_per_file=9"),
        (RunOptions, {"temperature": 9}, "write sampling=SamplingParams(temperature=9) in each Step"),
        (RunOptions, {"batchsize": 9}, "did you mean 'batch_size'?"),
        (register_engine, {"model": "m"}, "register_engine: 'name' must be given"),
    ],
)
def test_every_declaration_says_what_to_write(call: Callable[..., Any], keys: dict[str, Any], advice: str) -> None:
    assert advice in refused(call, **keys)


def test_the_options_of_a_run_are_checked_at_the_line_that_runs_it(tmp_path: Path) -> None:
    chain = Chain(name="c", steps=[NODE])
    for method in (chain.run, chain.run_iter):
        assert "write format='csv'" in refused(method, [{"text": "a"}], tmp_path / "out", fmt="csv")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "advice"),
    [
        ({"api_key": "sk-secret"}, "unknown key 'api_key'; write api_key_env=\"NAME\""),
        ({"base_url": "http://h/v1"}, "write endpoint='http://h/v1'"),
        ({"port": 8000}, "write endpoint='http://127.0.0.1:8000/v1'"),
        ({"temperature": 0.1}, "write sampling=SamplingParams(temperature=0.1) in each Step"),
        ({"concurrency": 9}, "write capacity=9"),
        ({"num_ctx": 9}, "none: it is a key of backend 'ollama'"),
        ({"capcity": 9}, "unknown key 'capcity'; did you mean 'capacity'?"),
    ],
)
def test_an_engine_says_what_to_write_for_an_unknown_key(keys: dict[str, Any], advice: str) -> None:
    with using_registry(EngineRegistry()), pytest.raises(EngineConfigError) as caught:
        register_engine("llm", "m", "openai", **keys)
    said = str(caught.value)
    assert said.startswith(__file__) and advice in said and "sk-secret" not in said


@pytest.mark.parametrize(
    ("backend", "advice"),
    [
        ("vllm_api", "write backend 'vllm' for a model in this process, or 'openai' with the endpoint of a server"),
        ("vllm-server", "or 'openai' with the endpoint of a server"),
        ("tgi", "write backend 'openai' with the endpoint"),
        ("llama.cpp", "did you mean 'llama_cpp'?"),
        ("llamacpp", "write backend 'llama_cpp'"),
        ("llama-server", "write backend 'openai' with the endpoint"),
        ("gguf", "write backend 'llama_cpp'"),
        ("LM Studio", "write backend 'openai' with the endpoint"),
        ("azure", "endpoint='https://RESOURCE.openai.azure.com/openai/v1'"),
        ("anthropic", "endpoint='https://api.anthropic.com/v1'"),
        ("gemini", "write backend 'openai' with endpoint="),
        ("openrouter", "endpoint='https://openrouter.ai/api/v1'"),
        ("together", "write backend 'openai' with endpoint="),
        ("groq", "write backend 'openai' with endpoint="),
        ("hf", "write backend 'vllm'"),
        ("transformers", "write backend 'vllm'"),
        ("mlx", "write backend 'openai'"),
        ("sglang", "write backend 'openai'"),
        ("ollama_api", "write backend 'ollama'"),
        ("mock", "write backend 'simulated'"),
        ("OpenAI", "did you mean 'openai'?"),
        ("olama", "did you mean 'ollama'?"),
        ("quantum", "known: llama_cpp, ollama, openai, simulated, vllm"),
    ],
)
def test_the_name_of_a_backend_in_another_library_suggests_ours(backend: str, advice: str) -> None:
    with using_registry(EngineRegistry()), pytest.raises(EngineConfigError) as caught:
        register_engine("llm", "m", backend)
    assert advice in str(caught.value)


@pytest.mark.parametrize(("model", "backend"), [("org/model", "vllm"), ("small.gguf", "llama_cpp")])
def test_an_endpoint_is_not_ignored_by_a_backend_that_has_none(model: str, backend: str) -> None:
    with using_registry(EngineRegistry()), pytest.raises(EngineConfigError) as caught:
        register_engine("llm", model, endpoint="http://127.0.0.1:8000/v1")
    said = f"backend {backend!r} loads the model in this process and takes no endpoint; for a server write backend='openai'"
    assert said in str(caught.value)


def test_an_engine_named_by_its_model_or_misspelt_is_suggested() -> None:
    registry = EngineRegistry()
    with using_registry(registry):
        register_engine("judge", "gpt-4.1", "openai")
    with pytest.raises(UnknownEngine, match=r"no engine 'gpt-4\.1'; that is the model of engine 'judge'"):
        registry.get("gpt-4.1")
    with pytest.raises(UnknownEngine, match=r"did you mean 'judge'\?"):
        registry.get("Juge")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"temperature": "0.2"}, "temperature is '0.2'"),
        ({"max_tokens": None}, "max_tokens is None"),
        ({"top_p": True}, "top_p is True"),
    ],
)
def test_sampling_of_the_wrong_type_is_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ChainetteError, match=rf"test_argument_advice\.py:\d+: SamplingParams\.{words}; it must be a number"):
        SamplingParams(**keys)


@pytest.mark.parametrize("name", ["temperature", "presence_penalty", "frequency_penalty", "repetition_penalty"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_sampling_that_json_cannot_say_is_refused(name: str, value: float) -> None:
    keys: dict[str, Any] = {name: value}
    with pytest.raises(ChainetteError, match=rf"SamplingParams\.{name} is {value}; it must be a finite number"):
        SamplingParams(**keys)
