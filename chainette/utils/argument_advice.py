"""Errors for wrong arguments of a call, which show the right form."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from chainette.errors import ChainetteError, WrongArguments
from chainette.utils.call_site import caller_place
from chainette.utils.plurals import counted

__all__ = ["advice", "explained", "nearest", "spelt_out"]

T = TypeVar("T", bound=Callable[..., Any])

_KEYWORD = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or a list of the known words if none is similar."""
    words = sorted(set(known))
    folded = {each.lower(): each for each in reversed(words)}
    close = difflib.get_close_matches(word.lower(), list(folded), n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else f"; known: {', '.join(words)}"


def advice(unknown: Mapping[str, Any], known: Iterable[str], hints: Mapping[str, str], *, kind: str = "no parameter") -> str:
    """Names the unknown arguments, with the right form of each.

    A hint may contain `{value}`, or `{given}`, which stands for all arguments with that hint: for `temperature=0.2` and
    `top_p=0.9`, `sampling=SamplingParams({given})` gives one suggestion with both.
    """
    said, shared = [], dict[str, list[str]]()
    for key in unknown:
        if key in hints:
            shared.setdefault(hints[key], []).append(key)
        else:
            said.append(f"{kind} {key!r}{nearest(key, known)}")
    for hint, keys in shared.items():
        given = ", ".join(f"{key}={_shown(unknown[key])}" for key in keys)
        written = hint.format(given=given, value=_shown(unknown[keys[0]]))
        said.append(f"{kind} {' and '.join(map(repr, keys))}; write {written}")
    return ", and ".join(said)


def explained(hints: Mapping[str, str] | None = None, *, called: str = "") -> Callable[[T], T]:
    """Makes a class or a function raise WrongArguments, with the caller's line and the right form, for wrong arguments.

    Chainette's own errors and Ctrl-C lose the traceback below this call: the message is enough, and in a notebook a
    hundred lines of traceback would hide it.

    `hints` maps names that users know from other libraries to advice; for any other name, the nearest known one is
    suggested. `called` is the name that messages use for the class or function.
    """

    def wrap(target: T) -> T:
        is_class = isinstance(target, type)
        wrapped: Any = target.__init__ if is_class else target
        signature = inspect.signature(wrapped)

        @functools.wraps(wrapped)
        def checked(*arguments: Any, **keys: Any) -> Any:
            try:
                signature.bind(*arguments, **keys)
            except TypeError as error:
                given = arguments[1:] if "self" in signature.parameters else arguments
                raise _refusal(called or target.__name__, signature, given, keys, hints or {}, error) from None
            try:
                return wrapped(*arguments, **keys)
            except (ChainetteError, KeyboardInterrupt) as found:
                raise found.with_traceback(None) from None

        if not is_class:
            return checked  # type: ignore[return-value]
        target.__init__ = checked  # type: ignore[method-assign]
        return target

    return wrap


def spelt_out(keywords: type) -> Callable[[T], T]:
    """Gives a function that takes `**options: Unpack[keywords]` a signature with every option, so that consoles complete them.

    The signature shows `...` for each default; the docstring has the values.
    """

    def mark(function: T) -> T:
        signature = inspect.signature(function)
        named = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        for name, kind in keywords.__annotations__.items():
            written = getattr(kind, "__forward_arg__", kind)
            named.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=..., annotation=written))
        function.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
        return function

    return mark


def _refusal(
    name: str,
    signature: inspect.Signature,
    arguments: tuple[Any, ...],
    keys: Mapping[str, Any],
    hints: Mapping[str, str],
    error: TypeError,
) -> WrongArguments:
    parameters = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
    known = [parameter.name for parameter in parameters if parameter.kind in _KEYWORD]
    places = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    required = [each.name for each in parameters if each.kind in _KEYWORD and each.default is each.empty]
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    unknown = {} if takes_any else {key: value for key, value in keys.items() if key not in known}
    if len(arguments) > len(places):
        form = ", ".join([*places, *(f"{each}=..." for each in required if each not in places)])
        taken = counted(len(places), "positional argument") if places else "no positional arguments"
        said = f"it takes {taken}; write {name}({form})"
    elif unknown:
        said = advice(unknown, known, hints)
    else:
        missing = [each for each in required if each not in keys and each not in places[: len(arguments)]]
        said = f"{' and '.join(map(repr, missing))} must be given" if missing else str(error)
    return WrongArguments(f"{caller_place()}: {name}: {said}")


def _shown(value: Any) -> str:
    """The value as the user would write it, or `...` if that is long."""
    if isinstance(value, type):
        return value.__name__
    text = repr(value) if isinstance(value, str | int | float) or value is None else "..."
    return text if len(text) <= 60 else "..."
