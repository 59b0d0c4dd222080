"""From a row to the chat messages of a step."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from chainette.core.history import History, received
from chainette.core.plan import Plan
from chainette.core.plan_node import PlanNode
from chainette.core.step import Step
from chainette.core.templates.types import has_member
from chainette.errors import TemplateError
from chainette.records import Message, Row
from chainette.utils.json_schema import generate_json_output_prompt, json_schema_of
from chainette.utils.templates import Template
from chainette.utils.user_errors import RAISED, told

__all__ = ["Prompter", "is_field", "prompter"]


def prompter(plan: Plan, node: PlanNode) -> Prompter:
    """The node's Prompter, compiled once per plan."""
    made: Prompter | None = plan.memo.get(("prompter", node.id))
    if made is None:
        made = plan.memo["prompter", node.id] = Prompter(plan, node)
    return made


class Prompter:
    """Renders one step's prompts; decodes only the values the templates name."""

    def __init__(self, plan: Plan, node: PlanNode) -> None:
        assert isinstance(node.node, Step)
        self._plan, self._node, self._step = plan, node, node.node
        self._system = Template(self._step.system_prompt, f"step {node.id!r}, system_prompt")
        self._user = Template(self._step.user_prompt, f"step {node.id!r}, user_prompt")
        names = self._system.names | self._user.names
        past = sorted(names & {*node.scope})
        #: Ids and aliases the templates name -> the name in the row and the decoder, if every row has one model there.
        self._decoders = {name: found for name in past if (found := _decoder(plan, node, name))}
        #: The ids and aliases without a decoder, and the other names: `input` and its bare fields.
        self._varying = [name for name in past if name not in self._decoders]
        self._bare = sorted(names - {*node.scope, "row_id"})
        #: Model -> those of the other names that are its fields.
        self._members: dict[type, list[str]] = {}

    @cached_property
    def schema(self) -> dict[str, Any]:
        """JSON Schema of an answer."""
        return json_schema_of(self._step.output_model)

    @cached_property
    def instruction(self) -> str:
        """The text appended to the system prompt."""
        own = self._step.output_format_instruction
        return generate_json_output_prompt(self._step.output_model) if own is None else own

    def messages(self, row: Row) -> tuple[Message, ...]:
        """The messages of the first ask.

        Raises:
            TemplateError: the prompts cannot be rendered for this row.
        """
        if self._step.prompt_builder is not None:
            return self._built(row)
        context = self._context(row)
        system = self._constant_system if not self._system.names else self._system_message(context)
        user = Message("user", self._user.render(context))
        return (system, user) if system else (user,)

    @cached_property
    def _constant_system(self) -> Message | None:
        return self._system_message({})

    def _system_message(self, context: dict[str, Any]) -> Message | None:
        text = "\n\n".join(part for part in (self._system.render(context), self.instruction) if part)
        return Message("system", text) if text else None

    def _context(self, row: Row) -> dict[str, Any]:
        context: dict[str, Any] = {"row_id": row.row_id}
        for name, (key, decode) in self._decoders.items():
            context[name] = decode(row.values[key])
        if self._varying:
            history = History(self._plan, self._node, row)
            for name in self._varying:
                context[name] = history[name]
        if self._bare:
            context["input"] = item = self._node.input_type.model_validate_json(row.values[self._node.source])
            for name in self._members_of(item):
                context[name] = getattr(item, name)
        return context

    def _members_of(self, item: Any) -> list[str]:
        """The bare names that mean a field of the row the step receives."""
        if item.model_extra:
            return [name for name in self._bare if is_field(item, name)]
        kind = type(item)
        if kind not in self._members:
            self._members[kind] = [name for name in self._bare if is_field(item, name)]
        return self._members[kind]

    def _built(self, row: Row) -> tuple[Message, ...]:
        builder = self._step.prompt_builder
        assert callable(builder)
        try:
            built = builder(self._step, received(self._node, row), History(self._plan, self._node, row))
            messages = tuple(built)
        except RAISED as error:
            raise TemplateError(f"prompt_builder of step {self._node.id!r} raised {told(error)}") from error
        wrong = [message for message in messages if not isinstance(message, Message)]
        if wrong or not messages:
            found = f"a list with {wrong[0]!r}" if wrong and not isinstance(built, str) else repr(built)
            wanted = "must return a list of Message(role, content)"
            raise TemplateError(f"prompt_builder of step {self._node.id!r} {wanted}, it returned {found}")
        return messages


def _decoder(plan: Plan, node: PlanNode, name: str) -> tuple[str, Callable[[bytes], Any]] | None:
    """The name under which a row keeps a past value, and its decoder; None if the model depends on the row or on the round."""
    if node.round is not None and name in ("round", "previous"):
        return None
    key = node.key_of(name)
    decode = plan.decoder(key)
    return None if decode is None else (key, decode)


def is_field(item: Any, name: str) -> bool:
    """Whether a bare name means a field of the row the step receives."""
    return has_member(type(item), name) or name in (item.model_extra or {})
