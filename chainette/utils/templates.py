"""Prompts as jinja2 templates: compiled once, rendered per row, with an error for every missing name.

Rendering is sandboxed and strict. `{{ value }}` prints text and numbers as they are, an enum as its
value, and everything else as JSON: a model (by alias), a list, a dict, None as `null`, True as `true`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import TracebackType
from typing import Any

from chainette.errors import TemplateError
from chainette.utils.user_errors import RAISED, told

__all__ = ["Expression", "Template", "render"]


class Template:
    """One compiled template. Renders from any thread.

    Raises:
        TemplateError: the source has a syntax error; the message names the label and the line.
    """

    #: Names the template takes from its context, including jinja2's own globals (`range`).
    names: frozenset[str]

    def __init__(self, source: str, label: str = "template") -> None:
        from jinja2 import TemplateSyntaxError

        from chainette.utils import sandbox

        if not isinstance(source, str):
            raise TemplateError(f"{label}: a template is a string, found {source!r}")
        self.source, self.label = source, label
        try:
            self.names = sandbox.names_of(sandbox.parse(source))
            self._compiled = sandbox.compile_tree(sandbox.parse(source))
            self._compiled.globals = {**self._compiled.globals}  # not a ChainMap, which every rendering would walk twice
        except TemplateSyntaxError as error:
            raise TemplateError(f"{label}, line {error.lineno}: {error.message}") from None

    def render(self, context: Mapping[str, Any]) -> str:
        """The template rendered with these values.

        Raises:
            TemplateError: a name or field is missing, the sandbox forbids an access, or the code of a
                model raised an error; the message names the label, the line and the cause.
        """
        try:
            return "".join(self._compiled.root_render_func(self._compiled.new_context(context)))  # type: ignore[arg-type]
        except RAISED as error:
            raise TemplateError(f"{self.label}, line {self._line(error.__traceback__)}: {_what(error)}") from error

    def _line(self, traceback: TracebackType | None) -> int:
        """The template's line where rendering stopped; frames of the generated code carry its own numbers."""
        line = 1
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename == "<template>":
                line = self._compiled.get_corresponding_lineno(traceback.tb_lineno)
            traceback = traceback.tb_next
        return line


class Expression(Template):
    """A template that gives the value itself if it consists of one `{{ x }}`; any other template gives its text.

    Raises:
        TemplateError: as `Template`.
    """

    def __init__(self, source: str, label: str = "template") -> None:
        from chainette.utils import sandbox

        super().__init__(source, label)
        lone = sandbox.lone_expression(sandbox.parse(source.strip()))
        self._is_lone = lone is not None
        if lone is not None:
            self._compiled = sandbox.compile_tree(sandbox.assigned(_VALUE, lone))

    def value(self, context: Mapping[str, Any]) -> Any:
        """The value of the expression, or the text of the template, for these values.

        Raises:
            TemplateError: as `Template.render`.
        """
        from chainette.utils import sandbox

        if not self._is_lone:
            return self.render(context)
        try:
            within = self._compiled.new_context(context)  # type: ignore[arg-type]
            "".join(self._compiled.root_render_func(within))
            return sandbox.defined(within.vars[_VALUE])
        except RAISED as error:
            raise TemplateError(f"{self.label}, line {self._line(error.__traceback__)}: {_what(error)}") from error


#: The variable that holds an expression's value; users' names cannot begin with "_".
_VALUE = "_value"


def _what(error: BaseException) -> str:
    from jinja2 import TemplateError as JinjaError

    return str(error) if isinstance(error, JinjaError) else told(error)


@lru_cache(maxsize=256)
def _compiled(source: str) -> Template:
    return Template(source)


def render(source: str, context: Mapping[str, Any]) -> str:
    """Renders a template; the last 256 sources stay compiled.

    Raises:
        TemplateError: as `Template`.
    """
    return _compiled(source).render(context)
