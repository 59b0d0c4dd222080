"""Models as a chain file has them: by their fields if nothing gets lost, else as module:Class, else as JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from chainette.core.document.code_names import reference_to
from chainette.core.document.dumper import dumped
from chainette.core.document.model_notation import Unsayable, fields_of, is_data
from chainette.core.document.models import JSON_SCHEMA, Models
from chainette.core.document.yaml_parts import Part, parts_of
from chainette.errors import LoadError

__all__ = ["ModelWriter"]


@dataclass
class ModelWriter:
    """Collects the models a chain uses."""

    #: Parts that YAML cannot express; shared with the writer of the chain.
    unsaid: list[str]
    #: Name -> fields, module:Class or JSON Schema; None if it cannot be said.
    models: dict[str, Any] = field(default_factory=dict)
    _names: dict[type[BaseModel], str] = field(default_factory=dict)
    #: The models that are written as module:Class, by that.
    _classes: dict[str, type[BaseModel]] = field(default_factory=dict)

    def model(self, model: type[BaseModel]) -> str:
        """The name of a model, which is then among those of the file."""
        if model not in self._names:
            name = self._names[model] = _free(model.__name__, self.models)
            self.models[name] = None
            self.models[name] = self.data(name, model) or self.reference(model) or self.schema(name, model)
        return self._names[model]

    def reference(self, model: type[BaseModel]) -> str:
        """module:Class; "" if no module of the user has it."""
        reference, _ = reference_to(model)
        self._classes[reference] = model
        return reference

    def data(self, name: str, model: type[BaseModel]) -> Any:
        """The model's fields, if the same model comes back when they are read."""
        models, names, unsaid = dict(self.models), dict(self._names), len(self.unsaid)
        try:
            fields = fields_of(model, self.model)
            if self.is_same(self.models | {name: fields}, name, model):
                return fields
        except Unsayable:
            pass
        self.models, self._names = models, names  # without those that only its fields use
        del self.unsaid[unsaid:]
        return None

    def schema(self, name: str, model: type[BaseModel]) -> Any:
        """The model's JSON Schema, if it says everything."""
        schema = {JSON_SCHEMA: model.model_json_schema()}
        return schema if is_data(model) and self.is_same({name: schema}, name, model) else self.lost(model)

    def is_same(self, models: Mapping[str, Any], name: str, model: type[BaseModel]) -> bool:
        """Whether the model comes back when it is read."""
        finished = {key: value for key, value in models.items() if value is not None}
        parts = parts_of(Path("models"), dumped(finished).encode()).value

        def refuse(part: Part) -> Part:
            raise part.fault("nothing is read while a chain is written")

        try:
            again = Models(parts, lambda part: self._classes[part.value], refuse).made()[name]
        except LoadError:
            return False
        return again.model_json_schema() == model.model_json_schema()

    def lost(self, model: type[BaseModel]) -> None:
        self.unsaid.append(f"the model {model.__name__}, which has more than fields and is not at the top of a module")
        return


def _free(name: str, taken: Mapping[str, Any]) -> str:
    count = 1
    while (found := name if count == 1 else f"{name}{count}") in taken:
        count += 1
    return found
