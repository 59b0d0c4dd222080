"""The models of a chain file: fields in the short notation, JSON Schema, or classes of the user's modules."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ForwardRef, Optional

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import SchemaError

from chainette.core.document.notation import field_of
from chainette.core.document.schema_types import SchemaTypes
from chainette.core.document.yaml_parts import Part
from chainette.errors import LoadError
from chainette.utils.argument_advice import nearest
from chainette.utils.user_errors import first_line

__all__ = ["JSON_SCHEMA", "Models", "missing_model"]

#: The only key of a model that is a JSON Schema.
JSON_SCHEMA = "json_schema"

_DEFINITION = re.compile(r"#/(\$defs|definitions)/([^/]+)")


@dataclass
class Models:
    """Models by name, each made when it is first used; they may refer to one another in circles.

    `find` imports the class that `module:Class` names; `read` gives the parts of the file a `file:` names.
    """

    declared: Mapping[str, Part]
    find: Callable[[Part], type[BaseModel]]
    read: Callable[[Part], Part]
    _made: dict[str, Any] = field(default_factory=dict)
    #: Models that are being made: a reference to one is resolved later.
    _begun: set[str] = field(default_factory=set)
    #: Targets of references that are resolved later; the place of each model that is made here.
    _later: dict[str, Any] = field(default_factory=dict)
    _own: list[tuple[type[BaseModel], Mapping[str, Part]]] = field(default_factory=list)

    def made(self) -> Mapping[str, type[BaseModel]]:
        """Every model.

        Raises:
            LoadError: one cannot be made, at its line.
        """
        for name, part in self.declared.items():
            _check_name(name, part, "a model")
            self.named(name)
        for model, parts in self._own:
            self._complete(model, parts)
        return self._made

    def named(self, name: str) -> Any:
        """The model, or a reference to it while it is being made; None if there is none of that name."""
        return self._once(name, lambda: self._make(name, self.declared[name])) if name in self.declared else None

    def _once(self, key: str, make: Callable[[], Any]) -> Any:
        if key in self._begun:
            return ForwardRef(key)
        if key not in self._made:
            self._begun.add(key)
            self._made[key] = self._later[key] = make()
            self._begun.discard(key)
        return self._made[key]

    def _make(self, name: str, part: Part) -> type[BaseModel]:
        if isinstance(part.value, str):
            return self.find(part)
        keys = part.mapping(f"model {name!r} (fields by name, {JSON_SCHEMA}: ..., or module:Class)")
        if keys.keys() == {JSON_SCHEMA} and isinstance(keys[JSON_SCHEMA].value, dict):
            return self._of_schema(name, keys[JSON_SCHEMA])
        fields = {key: field_of(value, f"{name}.{key}", self.named, [*self.declared]) for key, value in keys.items()}
        return self._create(name, part, keys, fields)

    def _of_schema(self, name: str, part: Part) -> type[BaseModel]:
        root = self.read(part) if part.value.keys() == {"file"} else part
        made = _Schema(self, name, root).types.type_of(root, name)
        if not (isinstance(made, type) and issubclass(made, BaseModel)):
            raise root.fault(f"model {name!r}: the schema must be of an object with properties")
        return made

    def _create(
        self,
        name: str,
        part: Part,
        parts: Mapping[str, Part],
        fields: dict[str, Any],
        doc: str | None = None,
        *,
        closed: bool = False,
    ) -> type[BaseModel]:
        if not fields:
            raise part.fault(f"model {name!r} has no fields")
        for key in fields:
            _check_name(key, parts[key], f"{name}: a field")
            if hasattr(BaseModel, key):
                raise parts[key].fault(f"{name}: the field {key!r} has the name of a method of pydantic; choose another")
        config = ConfigDict(protected_namespaces=(), validate_default=True, extra="forbid" if closed else "ignore")
        try:
            made = create_model(name, __config__=config, __doc__=doc, __module__=__name__, **fields)
        except Exception as error:  # pydantic has no common class for constraints that do not fit
            raise part.fault(f"model {name!r}: {_reason(error)}") from error
        self._own.append((made, parts))
        return made

    def _complete(self, model: type[BaseModel], parts: Mapping[str, Part]) -> None:
        """Resolves references, and checks the defaults.

        Raises: LoadError: a model refers to something that is not a model, or a default does not fit.
        """
        first = next(iter(parts.values()))
        try:
            model.model_rebuild(_types_namespace=self._later)
        except Exception as error:  # as above
            raise first.fault(f"model {model.__name__!r}: {_reason(error)}") from error
        for key, info in model.model_fields.items():
            if not info.is_required():
                try:
                    model.__pydantic_validator__.validate_assignment(model.model_construct(), key, info.default)
                except ValidationError as error:
                    words = error.errors()[0]["msg"]
                    raise parts[key].fault(
                        f"{model.__name__}.{key}: the default {info.default!r} does not fit: {words}"
                    ) from error


def _reason(error: Exception) -> str:
    """Pydantic's reason: `field 'f': regex parse error: unclosed group`, without the validators around the field."""
    if not isinstance(error, SchemaError):
        return first_line(error)
    lines = [line.strip().removeprefix("SchemaError: ") for line in str(error).splitlines()]
    fields = [re.sub('Field "(.*)":', r"field '\1':", line) for line in lines if line.startswith('Field "')]
    reasons = [line for line in lines if not line.startswith(('Field "', "Error building"))]
    first, last = reasons[0], reasons[-1].removeprefix("error: ")
    return " ".join([*fields, first, *([last] if len(reasons) > 1 else [])])


class _Schema:
    """One JSON Schema, whose references lead to its own definitions."""

    def __init__(self, models: Models, name: str, root: Part) -> None:
        self.models, self.name, self.root = models, name, root
        self.types = SchemaTypes(self.object, self.referred)

    def object(self, name: str, part: Part) -> type[BaseModel]:
        """The model of an object with properties."""
        keys = part.mapping(name)
        properties = keys["properties"].mapping(f"{name}: properties")
        required = (
            [each.text(f"{name}: required") for each in keys["required"].items(f"{name}: required")]
            if "required" in keys
            else []
        )
        for each in required:
            if each not in properties:
                raise keys["required"].fault(f"{name}: {each!r} is required, but not among the properties")
        fields = {key: self.field(f"{name}_{key}", value, needed=key in required) for key, value in properties.items()}
        more = keys.get("additionalProperties")
        if more is not None and not isinstance(more.value, bool):
            raise more.fault(f"{name}: additionalProperties beside properties is true or false")
        doc = keys["description"].text(f"{name}: description") if "description" in keys else None
        return self.models._create(_class_name(name), part, properties, fields, doc, closed=more is not None and not more.value)

    def field(self, name: str, part: Part, *, needed: bool) -> tuple[Any, Any]:
        kind = self.types.type_of(part, name)
        keys = part.value if isinstance(part.value, dict) else {}
        given: dict[str, Any] = (
            {"description": keys["description"].text(f"{name}: description")} if "description" in keys else {}
        )
        if "default" in keys:
            return kind, Field(keys["default"].plain, **given)
        return (kind, Field(**given)) if needed else (Optional[kind], Field(None, **given))  # noqa: UP045  (a ForwardRef)

    def referred(self, part: Part) -> Any:
        """The type a `$ref` leads to."""
        reference = part.text(f"{self.name}: $ref")
        if reference == "#":
            return ForwardRef(self.name)
        match = _DEFINITION.fullmatch(reference)
        if match is None:
            raise part.fault(f"{self.name}: $ref {reference!r} is not followed; only '#/$defs/NAME' is")
        definitions = self.root.value.get(match[1])
        found = definitions.mapping(f"{self.name}: {match[1]}").get(match[2]) if definitions is not None else None
        if found is None:
            raise part.fault(f"{self.name}: $ref {reference!r} leads nowhere")
        return self.models._once(f"{self.name}__{_class_name(match[2])}", lambda: self.types.type_of(found, match[2]))


def _class_name(text: str) -> str:
    name = re.sub(r"\W", "_", text)
    return name if name.isidentifier() else f"M{name}"


def _check_name(name: str, part: Part, what: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or name == JSON_SCHEMA:
        raise part.fault(f"{what} cannot be called {name!r}; letters, digits and '_' make a name that templates can say")


def missing_model(part: Part, name: str, models: Mapping[str, Any]) -> LoadError:
    """The error about a model that is not declared."""
    hint = nearest(name, models) if models else "; declare it under `models:`"
    return part.fault(f"there is no model {name!r}{hint}")
