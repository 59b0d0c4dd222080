"""Plain data as the YAML of a chain file."""

from __future__ import annotations

from typing import Any

import yaml

from chainette.core.document.yaml_parts import IMPLICIT

__all__ = ["Inline", "dumped"]


class Inline(dict[str, Any]):
    """A mapping that is written on one line."""


class _ChainDumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  (the base's signature)
        return True


_ChainDumper.yaml_implicit_resolvers = {
    first: [*IMPLICIT.get(first, ()), *yaml.SafeDumper.yaml_implicit_resolvers.get(first, ())]
    for first in {*IMPLICIT, *yaml.SafeDumper.yaml_implicit_resolvers}
}
_ChainDumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)
)
_ChainDumper.add_representer(
    Inline, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=True)
)
_ChainDumper.add_representer(
    list,
    lambda dumper, data: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", data, flow_style=not any(isinstance(item, dict | list) for item in data)
    ),
)


def dumped(document: Any) -> str:
    """The text, keys in their order."""
    text: str = yaml.dump(document, Dumper=_ChainDumper, sort_keys=False, allow_unicode=True, width=110)
    return text
