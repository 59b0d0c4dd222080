"""Step: one LLM call per row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any, Generic, get_origin

from pydantic import BaseModel, TypeAdapter
from typing_extensions import TypeVar

from chainette.core.annotations import list_of
from chainette.core.candidates import MAX_CANDIDATES, pick_problem
from chainette.core.function_signature import builder_problem
from chainette.core.node import Node
from chainette.engine.base import SamplingParams
from chainette.errors import DeclarationError, Place, PluginError
from chainette.records import Message
from chainette.utils.argument_advice import explained
from chainette.utils.call_site import caller_frame
from chainette.utils.plugins import PROMPT_BUILDERS

__all__ = ["DEFAULT_USER_PROMPT", "PromptBuilder", "Step"]

In = TypeVar("In", bound=BaseModel, default=BaseModel)
Out = TypeVar("Out", bound=BaseModel, default=BaseModel)

#: The row the step receives, as JSON.
DEFAULT_USER_PROMPT = "{{ input }}"

_DEFAULT_SAMPLING = SamplingParams()

_SAMPLING = "sampling=SamplingParams({given})"
_HINTS = dict.fromkeys(SamplingParams.__struct_fields__, _SAMPLING) | {
    "batch_size": "Chain(batch_size={value}, ...)",
    "best_of": "n={value}",
    "cache": "dedupe={value}",
    "choose": "pick={value}",
    "engine": "engine_name={value}",
    "input": "input_model={value}",
    "instructions": "system_prompt={value}",
    "max_completion_tokens": "sampling=SamplingParams(max_tokens={value})",
    "max_new_tokens": "sampling=SamplingParams(max_tokens={value})",
    "max_retries": "max_attempts={value}",
    "messages": "prompt_builder=..., a function (step, row, history) that returns the messages",
    "model": "output_model=... for the answer's model; the language model goes into register_engine(name, model=...)",
    "num_return_sequences": "n={value}",
    "output": "output_model={value}",
    "output_schema": "output_model={value}",
    "output_type": "output_model={value}",
    "prompt": "user_prompt={value}",
    "response_format": "output_model={value}",
    "response_model": "output_model={value}",
    "retries": "max_attempts={value}",
    "samples": "n={value}",
    "sampling_params": "sampling={value}",
    "schema": "output_model={value}",
    "system": "system_prompt={value}",
    "template": "user_prompt={value}",
    "user": "user_prompt={value}",
}

PromptBuilder = Callable[["Step[Any, Any]", Any, Mapping[str, Any]], Sequence[Message]]


class _Prompt:
    """A field for text that may be given as a file (`Path`), which is read when the step is declared."""

    def __init__(self, default: str) -> None:
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, step: Any, owner: type | None = None) -> str:
        if step is None:  # dataclass asks the class for the default
            return self._default
        text: str = step.__dict__[self._name]
        return text

    def __set__(self, step: Any, value: str | os.PathLike[str]) -> None:
        step.__dict__[self._name] = _text(value, self._name, f"{step.place}: step {step.id!r}", step.place)


def _text(value: object, name: str, where: str, place: Place) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, os.PathLike):
        hint = "; a function goes into prompt_builder" if callable(value) else "; leave it out" if value is None else ""
        raise DeclarationError(f"{where}: {name} is {value!r}, neither text nor a Path{hint}")
    path = Path(place.file).parent / value
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise DeclarationError(f"{where}: {name}: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DeclarationError(f"{where}: {name}: {path} is not UTF-8: {error.reason} at byte {error.start}") from error


def _names_in(code: CodeType) -> Iterator[str]:
    """The attributes and global names of a function, also of those inside it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names_in(inner)


def _model_hint(value: object) -> str:
    if isinstance(value, BaseModel):
        return f"; give the class {type(value).__name__}"
    return "; put it into a field of a BaseModel" if isinstance(value, type) or get_origin(value) is not None else ""


@explained(_HINTS)
@dataclass(frozen=True, kw_only=True, eq=False)
class Step(Node, Generic[In, Out]):
    """Asks an engine once per row for an `output_model` and validates the answer.

    Prompts are jinja2 templates (the page on templates lists the names in scope). The JSON-schema
    instruction is appended to the system prompt unless `output_format_instruction` replaces it ("" leaves
    it out). A bad answer is sent back with the error, up to `max_attempts` asks. Then the engines of `escalate` are asked in
    turn, and the column `_engine` says which one answered.

    With `n`, every row is asked n times, each candidate with a seed and attempts of its own, and `pick` chooses one of the
    valid candidates. `<id>_candidates/` has all of them as rows `17~0`, `17~1`, ... A row with fewer than `min_valid` valid
    candidates is rejected. For example, `Step(id="solve", n=5, pick="majority:result", ...)`.

    Raises:
        DeclarationError: a value that cannot work, at the line that declares the step.
    """

    output_model: type[Out]
    engine_name: str
    #: Defaults to the output model of the node before.
    input_model: type[In] | None = None
    sampling: SamplingParams = _DEFAULT_SAMPLING
    #: Text, or a Path relative to the file that declares the step.
    system_prompt: _Prompt = _Prompt("")
    #: As system_prompt.
    user_prompt: _Prompt = _Prompt(DEFAULT_USER_PROMPT)
    output_format_instruction: str | None = None
    #: False keeps the rows out of the outputs; later nodes still see them.
    yield_output: bool = True
    #: Builds the messages in place of the two templates; text names one that a plugin brings.
    prompt_builder: PromptBuilder | str | None = None
    #: Asks per engine.
    max_attempts: int = 3
    #: Engines that are asked in this order, each in a fresh conversation, for rows that `engine_name` gave no good answer for.
    escalate: Sequence[str] = ()
    #: Candidates per row.
    n: int = 1
    #: "majority" (the most frequent candidate, the earliest of equals), "majority:field" (by one field), or a function of the
    #: list of valid candidates that gives one row, or None to drop the row. None: the value is the list of valid candidates.
    pick: str | Callable[[list[Out]], Out | None] | None = None
    #: Valid candidates a row needs.
    min_valid: int = 1
    #: Rows whose requests are equal in all but the seed are asked once, and share the answer. None: as the run says.
    dedupe: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for label, model in (("output_model", self.output_model), ("input_model", self.input_model)):
            if model is not None and not (isinstance(model, type) and issubclass(model, BaseModel)):
                raise self._wrong(f"{label} is {model!r}, not a pydantic model{_model_hint(model)}")
        if not isinstance(self.max_attempts, int) or self.max_attempts < 1:
            raise self._wrong(f"max_attempts is {self.max_attempts!r}, it must be 1 or more")
        if isinstance(self.sampling, dict):
            raise self._wrong("sampling is a dict; write SamplingParams(...)")
        if isinstance(self.prompt_builder, str):
            object.__setattr__(self, "prompt_builder", self._plugged(self.prompt_builder))
        if self.prompt_builder is not None and (problem := builder_problem(self.prompt_builder, caller_frame().f_locals)):
            raise self._wrong(problem)
        if not isinstance(self.engine_name, str):
            name = getattr(self.engine_name, "name", None)
            wanted = f"write engine_name={name!r}" if name else "give the name of a registered engine"
            raise self._wrong(f"engine_name must be text, not {type(self.engine_name).__name__}; {wanted}")
        self._check_escalate()
        self._check_candidates()
        if self.dedupe not in (None, True, False):
            raise self._wrong(f"dedupe is {self.dedupe!r}; it must be True or False, or left out")
        if self.dedupe and self.n > 1:
            raise self._wrong(f"n={self.n} asks each row several times, and dedupe asks equal rows once; leave one of them out")

    def _check_candidates(self) -> None:
        for name, most, of in (("n", MAX_CANDIDATES, ""), ("min_valid", self.n, " (n)")):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise self._wrong(f"{name} is {value!r}, it must be from 1 to {most:,}{of}")
        if self.pick is None:
            return
        if self.n == 1:
            raise self._wrong("pick= chooses among several candidates; give n= (2 or more)")
        if problem := pick_problem(self.pick, self.output_model, caller_frame().f_locals):
            raise self._wrong(problem)

    def _check_escalate(self) -> None:
        given: object = self.escalate
        if isinstance(given, str):
            raise self._wrong(f"escalate is text; write escalate=[{given!r}]")
        if not isinstance(given, list | tuple) or not all(isinstance(name, str) for name in given):
            raise self._wrong(f"escalate is {given!r}, not a list of names of engines")
        object.__setattr__(self, "escalate", tuple(given))
        if again := next((name for name in self.engines if self.engines.count(name) > 1), None):
            raise self._wrong(f"engine {again!r} is asked twice: engine_name and escalate name each engine once")

    def _plugged(self, name: str) -> PromptBuilder:
        try:
            builder, whose = PROMPT_BUILDERS.load(name)
        except PluginError as error:
            raise self._wrong(str(error)) from error
        if not callable(builder):
            raise self._wrong(f"{whose} is not a function (step, row, history)")
        found: PromptBuilder = builder
        return found

    @property
    def engines(self) -> tuple[str, ...]:
        """The names of every engine that may be asked, in order."""
        return (self.engine_name, *self.escalate)

    @property
    def unsent(self) -> list[str]:
        """The prompts in whose place `prompt_builder` stands, unless its code mentions them."""
        code = getattr(self.prompt_builder, "__code__", None)
        if not isinstance(code, CodeType):  # none, or an object whose code may be anywhere
            return []
        defaults = {"system_prompt": "", "user_prompt": DEFAULT_USER_PROMPT, "output_format_instruction": None}
        mentioned = set(_names_in(code))
        return [
            name for name, default in defaults.items() if getattr(self, name) not in (default, "") and name not in mentioned
        ]

    @property
    def gives_list(self) -> bool:
        """Whether its value for a row is the list of candidates."""
        return self.n > 1 and self.pick is None

    def _wrong(self, said: str) -> DeclarationError:
        return DeclarationError(f"{self.place}: step {self.id!r}: {said}")

    def decode(self, value: bytes) -> Out:
        """The validated output from a row's JSON; the list of them with `n` and without `pick`."""
        if self.gives_list:
            found: Out = TypeAdapter[Any](list_of(self.output_model)).validate_json(value)
            return found
        return self.output_model.model_validate_json(value)
