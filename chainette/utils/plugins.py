"""Plugins: code of other distributions, found through entry points (a name and a `module:attribute` in a group).

A plugin is imported only when its name is used.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from chainette.errors import PluginError
from chainette.utils.argument_advice import nearest

__all__ = ["HOOKS", "PROMPT_BUILDERS", "Group"]


class Group(NamedTuple):
    """The plugins of one kind."""

    #: The group of the entry points.
    name: str
    #: The noun for one plugin of the group, for messages.
    kind: str

    def names(self) -> list[str]:
        return sorted({point.name for point in entry_points(group=self.name)})

    def maker_of(self, name: str) -> str:
        """The distributions a name comes from, with their versions."""
        return " and ".join(_maker(point) for point in entry_points(group=self.name, name=name))

    def load(self, name: str) -> tuple[Any, str]:
        """The object with this name, and a phrase that names its plugin in messages.

        Raises:
            PluginError: no plugin has this name, two have it, or it cannot be imported.
        """
        points = entry_points(group=self.name, name=name)
        if not points:
            raise PluginError(f"unknown {self.kind} {name!r}{nearest(name, self.names())}")
        if len(points) > 1:
            raise PluginError(f"{self.kind} {name!r} comes from two plugins, {self.maker_of(name)}; uninstall one of them")
        [point] = points
        whose = f"{self.kind} {name!r} of the plugin {_maker(point)} ({point.value})"
        try:
            return point.load(), whose
        except Exception as error:  # a plugin's code may raise anything
            raise PluginError(f"{whose} cannot be imported: {type(error).__name__}: {error}") from error


#: Functions for `Step(prompt_builder="NAME")`.
PROMPT_BUILDERS = Group("chainette.prompt_builders", "prompt builder")
#: Hooks for `chainette run --hook NAME`.
HOOKS = Group("chainette.hooks", "hook")


def _maker(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.module
