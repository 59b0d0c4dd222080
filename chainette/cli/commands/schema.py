"""`chainette schema`: the JSON Schema of chain.yml."""

from __future__ import annotations

import json

from chainette.cli.command_errors import guarded
from chainette.cli.printing import tell
from chainette.core.document.editor_schema import editor_schema

__all__ = ["schema"]


@guarded
def schema() -> None:
    """Print the JSON Schema of chain.yml, for editors.

    Write it to a file and name that in the first line of a chain: # yaml-language-server: $schema=chain.schema.json
    """
    tell(json.dumps(editor_schema(), indent=2))
