"""The effect of changing each setting of a run that already has rows; docs/semantics.md shows the same table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chainette.core.run_settings import FLAGS, RECORDED
from chainette.engine.backends import backend_class

__all__ = ["SETTINGS", "Settings", "appended", "kept", "lowered", "more_rounds", "raised", "settings_of_engine"]

#: Whether a change from the first value to the second can only turn rejected rows into good ones.
Rescues = Callable[[Any, Any], bool]


def raised(old: Any, new: Any) -> bool:
    """Whether a number was not lowered."""
    return bool(new >= old)


def lowered(old: Any, new: Any) -> bool:
    """Whether a number was not raised."""
    return bool(new <= old)


def appended(old: Any, new: Any) -> bool:
    """Whether a list still begins with its old items."""
    return bool(list(new[: len(old)]) == list(old))


def more_rounds(old: str, new: str) -> bool:
    """Whether every row that ended in a loop ends in the same round: `4 under reject` may become `6 under reject`."""
    (rounds, _, ending), more = old.partition(" under "), new.partition(" under ")[0]
    return rounds == more or (ending == "reject" and int(more) > int(rounds))


def kept(old: str, new: str) -> bool:
    """Whether rows that no round satisfied end as before, or are kept instead of rejected."""
    return old == new or (old, new) == ("reject", "keep")


@dataclass(frozen=True)
class Settings:
    """The settings of one kind of declaration, in three classes."""

    #: They decide accepted rows, or files: `resume` refuses another value, and names the `--from` that takes it.
    decide: frozenset[str] = frozenset()
    #: They can only rescue rejected rows if they change in this direction: `resume` and `rejected --retry` accept that.
    rescue: Mapping[str, Rescues] = field(default_factory=dict)
    #: Operational: free to change.
    free: frozenset[str] = frozenset()


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FUNCTION = Settings(decide=_words("id fn input_model output_model cardinality"), free=_words("name emoji"))

#: Every setting a user can declare, by kind of declaration; `settings_of_engine` adds the keys of its backend.
SETTINGS: Mapping[str, Settings] = {
    "Chain": Settings(decide=_words("steps input_model"), free=_words("name emoji batch_size accept")),
    "Step": Settings(
        decide=_words("id input_model output_model engine_name sampling system_prompt user_prompt")
        | _words("output_format_instruction prompt_builder yield_output n pick dedupe"),
        rescue={"max_attempts": raised, "escalate": appended, "min_valid": lowered},
        free=_words("name emoji"),
    ),
    "SamplingParams": Settings(
        decide=_words("temperature top_p top_k stop seed presence_penalty frequency_penalty repetition_penalty extra"),
        rescue={"max_tokens": raised},
    ),
    "ApplyNode": _FUNCTION,
    "BatchApply": _FUNCTION,
    "Branch": Settings(decide=_words("id name steps alias"), free=_words("emoji")),
    "Route": Settings(decide=_words("id name on ways alias"), free=_words("emoji")),
    "Loop": Settings(
        decide=_words("id name steps until best result alias"),
        rescue={"max_rounds": more_rounds, "on_exhausted": kept},
        free=_words("emoji"),
    ),
    "engine": Settings(
        decide=_words("model backend revision tokenizer extra"),
        free=_words("name endpoint api_key_env capacity exclusive lazy gpu_ids startup_timeout download_dir price budget"),
    ),
    "run": Settings(decide=RECORDED, free=frozenset(FLAGS) - RECORDED),
}


def settings_of_engine(backend: str) -> Settings:
    """The settings of an engine, including its backend's own keys.

    Raises:
        EngineConfigError: there is no such backend here.
    """
    common, options = SETTINGS["engine"], backend_class(backend).options
    own, directions = frozenset(options.__struct_fields__), {"raised": raised, "lowered": lowered}
    rescue = {name: directions[way] for name, way in options.RESCUING.items()}
    return Settings(common.decide | own - options.OPERATIONAL - rescue.keys(), rescue, common.free | options.OPERATIONAL)
