"""From chat messages to a model's tokens, through the chat template of a Hugging Face tokenizer; and when they are too many."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chainette.engine.base import Request
from chainette.engine.config import EngineConfig
from chainette.engine.special_tokens import SpecialTokens
from chainette.errors import EngineConfigError
from chainette.records import Message, Usage
from chainette.utils.plurals import counted

__all__ = ["TEMPLATE_KEY", "ChatTokens", "cut", "encoded_apart", "prefix_order", "too_long"]

#: The value of this name in `SamplingParams.extra` goes to the template, for example {"enable_thinking": False}.
TEMPLATE_KEY = "chat_template_kwargs"


class ChatTokens:
    """Not thread-safe, since tokenizers are not.

    Raises:
        EngineConfigError: there is no chat template.
    """

    def __init__(self, tokenizer: Any, template: str | None, engine: str) -> None:
        self._tokenizer = tokenizer
        self._template = template_text(template)
        self._special = SpecialTokens(_marker_tokens(tokenizer, self._template))
        if self._template is None and not getattr(tokenizer, "chat_template", True):
            raise EngineConfigError(
                f"engine {engine!r}: the model's tokenizer has no chat template; give one (text or file): chat_template=..."
            )

    def encode(self, requests: Sequence[Request]) -> list[list[int] | str]:
        """The tokens of each request's messages, or why the template refuses them."""
        return [self._encode(request) for request in requests]

    def _encode(self, request: Request) -> list[int] | str:
        arguments = request.sampling.extra.get(TEMPLATE_KEY, {})
        try:
            return self._tokens(request.messages, arguments)
        except Exception as error:
            if request.messages[0].role != "system" or len(request.messages) < 2:
                return _refused(error)
        try:
            return self._tokens(_without_system(request.messages), arguments)
        except Exception as error:
            return _refused(error)

    def _tokens(self, messages: Sequence[Message], arguments: dict[str, Any]) -> list[int]:
        masked = self._special.mask(messages)
        if masked is None:
            return list(self._rendered(messages, arguments, tokenize=True, return_dict=False))
        pieces = masked.pieces(self._rendered(masked.messages, arguments, tokenize=False))
        return [token for piece in pieces for token in self._tokenizer.encode(piece, add_special_tokens=False)]

    def _rendered(self, messages: Sequence[Message], arguments: dict[str, Any], **form: bool) -> Any:
        plain = [{"role": message.role, "content": message.content} for message in messages]
        chosen = {} if self._template is None else {"chat_template": self._template}
        return self._tokenizer.apply_chat_template(plain, add_generation_prompt=True, **form, **chosen, **arguments)


def encoded_apart(
    config: EngineConfig, template: str | None, requests: Sequence[Request], *, trusted: bool
) -> list[list[int] | str]:
    """`ChatTokens.encode` without the model; [] if transformers is missing, or has no files of the tokenizer here."""
    if find_spec("transformers") is None:
        return []
    from transformers import AutoTokenizer

    local = Path(config.tokenizer or config.model).expanduser()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(local) if local.exists() else config.tokenizer or config.model,
            revision=config.revision if config.tokenizer is None else None,
            cache_dir=config.download_dir,
            trust_remote_code=trusted,
            local_files_only=True,
        )
        return ChatTokens(tokenizer, template, config.name).encode(requests)
    except Exception:  # opening the engine gives the better message
        return []


def prefix_order(prompts: Sequence[list[int] | str]) -> list[int]:
    """The indexes of the prompts, ordered so that equal beginnings are adjacent and computed once, even if the cache
    has no room for everything."""
    return sorted(range(len(prompts)), key=lambda at: [] if isinstance(prompts[at], str) else prompts[at])


def too_long(tokens: int, limit: int) -> str:
    """Why a prompt cannot be answered."""
    return (
        f"the prompt has {tokens} tokens, and max_model_len={limit} must hold one more; "
        "shorten it, or raise max_model_len of the engine"
    )


def cut(usage: Usage, limit: int) -> str:
    """Says where an answer was cut before its max_tokens."""
    return (
        f"the answer was cut after {counted(usage.completion_tokens, 'token')}, because prompt "
        f"({counted(usage.prompt_tokens, 'token')}) and answer fill max_model_len={limit}; raise it, or ask for less"
    )


def _marker_tokens(tokenizer: Any, template: str | None) -> list[str]:
    """The texts the tokenizer turns into one token wherever they are: its special tokens, and others that the chat
    template writes."""
    written = str(template or getattr(tokenizer, "chat_template", ""))
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return [token.content for token in added if token.special or token.content in written]


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """Moves the system message into the first message, for templates without system messages."""
    system, first, *rest = messages
    return [Message(first.role, f"{system.content}\n\n{first.content}"), *rest]


def _refused(error: Exception) -> str:
    return f"the chat template refuses the messages: {error}"


def template_text(template: str | None) -> str | None:
    """The template itself, or the content of its file."""
    if template is None or "{" in template:
        return template
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise EngineConfigError(f"chat_template={template!r} is neither a template nor a file: {error}") from error
