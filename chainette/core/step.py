"""Step: one LLM call per row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from pydantic import BaseModel
from typing_extensions import TypeVar

from chainette.core.node import Node
from chainette.engine.base import SamplingParams
from chainette.errors import DeclarationError
from chainette.records import Message

__all__ = ["DEFAULT_USER_PROMPT", "PromptBuilder", "Step"]

In = TypeVar("In", bound=BaseModel, default=BaseModel)
Out = TypeVar("Out", bound=BaseModel, default=BaseModel)

#: The row that the step receives, as JSON.
DEFAULT_USER_PROMPT = "{{ input }}"

_DEFAULT_SAMPLING = SamplingParams()

PromptBuilder = Callable[["Step[Any, Any]", Any, Mapping[str, Any]], Sequence[Message]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Step(Node, Generic[In, Out]):
    """Asks an engine once per row for an `output_model` and validates the answer.

    Prompts are jinja2 templates (docs/templates.md says what is in scope). The JSON-schema
    instruction is appended to the system prompt unless `output_format_instruction` replaces it ("" leaves
    it out). A bad answer is sent back with what was wrong, up to `max_attempts` asks.

    Raises:
        DeclarationError: a value that cannot work, at the line that declares the step.
    """

    output_model: type[Out]
    engine_name: str
    #: Left out, it is the output model of the node before.
    input_model: type[In] | None = None
    sampling: SamplingParams = _DEFAULT_SAMPLING
    system_prompt: str = ""
    user_prompt: str = DEFAULT_USER_PROMPT
    output_format_instruction: str | None = None
    #: False keeps the rows out of the outputs; later nodes still see them.
    yield_output: bool = True
    #: Builds the messages instead of the two templates.
    prompt_builder: PromptBuilder | None = None
    max_attempts: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for label, model in (("output_model", self.output_model), ("input_model", self.input_model)):
            if model is not None and not (isinstance(model, type) and issubclass(model, BaseModel)):
                raise DeclarationError(f"{self.place}: step {self.id!r}: {label} is {model!r}, not a pydantic model")
        if self.max_attempts < 1:
            raise DeclarationError(f"{self.place}: step {self.id!r}: max_attempts is {self.max_attempts}, it must be 1 or more")
        if isinstance(self.sampling, dict):
            raise DeclarationError(f"{self.place}: step {self.id!r}: sampling is a dict; write SamplingParams(...)")

    def decode(self, value: bytes) -> Out:
        """The validated output out of a row's JSON."""
        return self.output_model.model_validate_json(value)
