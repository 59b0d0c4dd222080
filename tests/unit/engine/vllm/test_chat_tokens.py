"""Messages become tokens by the model's template, or say why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chainette.engine.base import Request, SamplingParams
from chainette.engine.vllm.chat_tokens import ChatTokens, prefix_order
from chainette.errors import EngineConfigError
from chainette.records import Message


class Tokenizer:
    """One token per character of `role:content|`; knows no system message if `knows_system` is false."""

    def __init__(self, chat_template: str | None = "own", knows_system: bool = True) -> None:
        self.chat_template = chat_template
        self.knows_system = knows_system
        self.told: dict[str, Any] = {}

    def apply_chat_template(self, messages: list[dict[str, str]], **told: Any) -> list[int]:
        self.told = told
        if not self.knows_system and messages[0]["role"] == "system":
            raise ValueError("System role not supported")
        if not messages[-1]["content"]:
            raise ValueError("empty")
        return [ord(letter) for message in messages for letter in f"{message['role']}:{message['content']}|"]


def request(*contents: str, **extra: Any) -> Request:
    roles = ("system", "user", "assistant", "user")
    messages = tuple(map(Message, roles, contents))
    return Request(messages, SamplingParams(extra=extra), 0, {}, "schema")


def words(tokenizer: Tokenizer, *requests: Request, template: str | None = None) -> list[str]:
    encoded = ChatTokens(tokenizer, template, "llama").encode(requests)
    return [tokens if isinstance(tokens, str) else "".join(map(chr, tokens)) for tokens in encoded]


def test_every_message_is_in_the_prompt() -> None:
    assert words(Tokenizer(), request("be brief", "hi", "{", "again")) == ["system:be brief|user:hi|assistant:{|user:again|"]


def test_where_the_template_knows_no_system_message_its_words_begin_the_first_one() -> None:
    assert words(Tokenizer(knows_system=False), request("be brief", "hi")) == ["user:be brief\n\nhi|"]


def test_what_the_template_refuses_costs_only_its_own_request() -> None:
    refused, good = words(Tokenizer(knows_system=False), request("be brief", "hi", ""), request("be brief", "hi"))
    assert refused == "the chat template refuses the messages: empty"
    assert good.startswith("user:")


def test_a_template_of_the_users_own_and_its_arguments_reach_the_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ mine }}")
    tokenizer = Tokenizer(chat_template=None)
    for template in ("{{ mine }}", str(tmp_path / "own.jinja")):
        words(tokenizer, request("a", "b", chat_template_kwargs={"enable_thinking": False}), template=template)
        assert (tokenizer.told["chat_template"], tokenizer.told["enable_thinking"]) == ("{{ mine }}", False)


def test_a_model_without_a_template_is_refused() -> None:
    with pytest.raises(EngineConfigError, match=r"'llama': the model's tokenizer has no chat template; give one"):
        ChatTokens(Tokenizer(chat_template=None), None, "llama")
    with pytest.raises(EngineConfigError, match=r"neither a template nor a file"):
        ChatTokens(Tokenizer(), "/nowhere.jinja", "llama")


def test_prompts_that_begin_alike_go_in_one_after_the_other() -> None:
    assert prefix_order([[1, 2, 3], [9, 1], [1, 2, 4], "refused", [9, 1, 5], [1, 2]]) == [3, 5, 0, 2, 1, 4]
