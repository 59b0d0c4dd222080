"""A distribution with a plugin, as pip would install it: a module and a `.dist-info` in a folder of `sys.path`.

python -m tests.support.plugin FOLDER       # installs the project in FOLDER into site-packages below the current folder
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

__all__ = ["PARROT", "install"]

#: A backend that answers with its key `word`, whatever it is asked.
PARROT = """
import json

from chainette import Engine
from chainette.engine.base import Completion, Options


class ParrotOptions(Options, frozen=True):
    OPERATIONAL = frozenset({"pause"})
    RESCUING = {"patience": "raised"}

    word: str = "polly"
    pause: float = 0.0
    patience: float = 1.0


class Parrot(Engine):
    options = ParrotOptions
    deterministic = True

    def __init__(self, config):
        self.capacity = config.capacity or 4
        self._model, self._word = config.model, config.options.word

    def obstacles(self):
        if self._model == "dodo":
            yield "the dodo is extinct; name another bird"

    async def open(self):
        pass

    async def generate(self, requests, done=None):
        answers = [Completion(json.dumps({"word": self._word})) for _ in requests]
        for index, answer in enumerate(answers):
            if done is not None:
                done(index, answer)
        return answers

    async def close(self):
        pass
"""


def install(
    folder: Path,
    source: str = PARROT,
    name: str = "chainette-parrot",
    version: str = "1.2",
    points: str = "[chainette.backends]\nparrot = {module}:Parrot\n",
) -> Path:
    """Puts the plugin into a folder, and returns it."""
    module = name.replace("-", "_")
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    (folder / f"{module}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(points.format(module=module))
    return folder


def main(project: Path) -> None:
    """Installs a project: a pyproject.toml, and a module with the project's name."""
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in targets.items())
        for group, targets in declared["entry-points"].items()
    )
    source = (project / f"{declared['name'].replace('-', '_')}.py").read_text()
    install(Path("site-packages"), source, declared["name"], declared["version"], points)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
