"""The chunks of a streamed answer of llama.cpp, and the completion that they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chainette.engine.base import Completion, Delta, Finish
from chainette.records import Usage

__all__ = ["Body", "completion_of", "delta_of"]

Body = dict[str, Any]


def completion_of(chunks: Sequence[Body], seconds: float) -> Completion:
    """A Completion from the chunks of a streamed answer, or from the error in their place."""
    deltas: list[Delta] = []
    finish, usage = "", Body()
    for chunk in chunks:
        if "error" in chunk:
            return _failure(chunk["error"], seconds)
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", ()):
            finish = choice.get("finish_reason") or finish
        deltas.append(delta_of(chunk))
    return Completion(
        "".join(delta.text for delta in deltas),
        Finish.LENGTH if finish == "length" else Finish.STOP,
        "".join(delta.reasoning for delta in deltas) or None,
        Usage(1, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0), seconds),
    )


def delta_of(chunk: Body) -> Delta:
    """The piece of the answer in a chunk."""
    parts = [choice.get("delta") or {"content": choice.get("text")} for choice in chunk.get("choices", ())]
    text = "".join(part.get("content") or "" for part in parts)
    return Delta(text, "".join(part.get("reasoning_content") or "" for part in parts))


def _failure(error: Body, seconds: float) -> Completion:
    usage = Usage(1, seconds=seconds)
    if error.get("type") == "exceed_context_size_error":
        counts = f"the prompt has {error.get('n_prompt_tokens')} tokens, the context of a slot {error.get('n_ctx')}"
        return Completion("", Finish.TOO_LONG, usage=usage, error=f"{counts}; raise n_ctx of the engine")
    return Completion("", Finish.ERROR, usage=usage, error=f"llama.cpp: {error.get('message', error)}")
