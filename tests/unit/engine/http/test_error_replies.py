"""Error bodies in the words of many servers: which say that the prompt does not fit, or is declined."""

from __future__ import annotations

import json

import pytest

from chainette.engine.base import Cause, Finish
from chainette.engine.http.error_replies import Fault, completion_of, failure_of, shortened, words_of

TOO_LONG = {
    "OpenAI": "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens.",
    "OpenAI, newer": "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens.",
    "OpenAI, responses": "Your input exceeds the context window of this model. Please adjust your input and try again.",
    "OpenAI, text": "Invalid 'messages[1].content': string too long. Expected a string with maximum length 10485760.",
    "Azure": "This model's maximum context length is 128000 tokens, however you requested 130000 tokens.",
    "vLLM": "This model's maximum context length is 4096 tokens. However, your request has 5000 input tokens.",
    "vLLM, older": "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
    "llama.cpp": "the request exceeds the available context size (512 tokens), try increasing it",
    "llama.cpp, older": "input is too large to process. increase the physical batch size",
    "Ollama": "the input length exceeds the context length",
    "Ollama, newer": "prompt too long; exceeded max context length by 12 tokens",
    "TGI": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens",
    "TGI, older": "Input validation error: `inputs` must have less than 1024 tokens. Given: 1500",
    "SGLang": "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
    "SGLang, older": "Input length (5000 tokens) exceeds the maximum allowed length (4090 tokens). Use a shorter input.",
    "SGLang, total": "Requested token count exceeds the model's maximum context length of 4096 tokens.",
    "LM Studio": "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with 4096",
    "LM Studio, older": "The number of tokens to keep from the initial prompt is greater than the context length.",
    "TensorRT-LLM": "The sum of prompt length (5000), query length (0) and max_tokens (100) should not exceed max_num_tokens",
    "Mistral": "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
    "Anthropic": "prompt is too long: 210000 tokens > 200000 maximum",
    "Anthropic, total": "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
    "Bedrock": "Input is too long for requested model.",
    "Gemini": "The input token count (1048577) exceeds the maximum number of tokens allowed (1048576).",
    "Gemini, size": "Request payload size exceeds the limit: 20971520 bytes.",
    "Groq": "Please reduce the length of the messages or completion.",
    "Together": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193",
    "DeepSeek": "This model's maximum context length is 65536 tokens. However, you requested 70000 tokens",
    "DashScope": "Range of input length should be [1, 30720]",
    "Moonshot": "Invalid request: Your request exceeded model token limit: 8192",
    "xAI": "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    "Cohere": "too many tokens: total number of tokens in the prompt cannot exceed 4081",
    "Zhipu": "Prompt exceeds max length",
    "MiniMax": "invalid params, context window exceeds limit",
    "Copilot": "prompt token count of 130000 exceeds the limit of 128000",
    "Cerebras": "Please reduce the length of the messages or completion. Current length is 9000 while limit is 8192",
    "Fireworks": "The prompt is too long: 40000, model maximum context length: 32767",
    "AI21": "Prompt has too many tokens",
}


@pytest.mark.parametrize("words", TOO_LONG.values(), ids=TOO_LONG)
def test_a_prompt_that_does_not_fit_is_known_in_the_words_of_every_server(words: str) -> None:
    data = json.dumps({"error": {"message": words}}).encode()
    for status in (400, 413, 422, 500):
        completion = completion_of(status, data, words)
        assert completion is not None and (completion.finish, completion.error) == (Finish.TOO_LONG, words)


@pytest.mark.parametrize(
    "words",
    [
        "max_tokens is too large: 100000. This model supports at most 4096 completion tokens, whereas you provided 100000.",
        "max_tokens: 200000 > 8192, which is the maximum allowed number of output tokens",
        "`max_new_tokens` must be <= 512",
        "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "Invalid schema for response_format 'ask'",
        "System role not supported",
        "messages: text content blocks must be non-empty",
    ],
)
def test_words_about_the_declaration_are_not_about_the_prompt(words: str) -> None:
    completion = completion_of(400, json.dumps({"error": {"message": words}}).encode(), words)
    assert completion is not None and completion.finish is Finish.ERROR


def test_a_413_without_words_is_about_the_size() -> None:
    completion = completion_of(413, b"", "")
    assert completion is not None and (completion.finish, completion.error) == (Finish.TOO_LONG, "413")


@pytest.mark.parametrize(
    "words",
    [
        "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
        "Your request was rejected: content_policy_violation",
        "Your chosen model requires moderation and your input was flagged",
        "Content Exists Risk",
        "Input data may contain inappropriate content.",
        "DataInspectionFailed",
    ],
)
def test_a_request_that_is_declined_for_its_content_is_refused(words: str) -> None:
    data = json.dumps({"error": {"message": words}}).encode()
    for status in (400, 403):
        completion = completion_of(status, data, words)
        assert completion is not None and completion.finish is Finish.REFUSED


def test_a_403_for_another_reason_is_not_about_the_request() -> None:
    assert completion_of(403, b'{"error": "no permission"}', "no permission") is None


@pytest.mark.parametrize("status", [408, 409, 425, 444, 460, 499, 500, 502, *range(520, 529), 530, 599])
def test_after_a_failure_of_the_server_or_a_gateway_the_same_request_may_succeed(status: int) -> None:
    failure = failure_of(status, b"", "", None)
    assert failure is not None and failure.fault is Fault.BROKEN and failure.may_pass


@pytest.mark.parametrize(
    ("status", "fault"), [(420, Fault.BUSY), (429, Fault.BUSY), (503, Fault.OVERLOADED), (529, Fault.OVERLOADED)]
)
def test_load_is_told_from_failure(status: int, fault: Fault) -> None:
    failure = failure_of(status, b"", "", None)
    assert failure is not None and failure.fault is fault and failure.cause is Cause.BUSY


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "no"}}, "no"),
        ({"error": "no"}, "no"),
        ({"message": "no", "object": "error"}, "no"),
        ({"detail": "no"}, "no"),
        ({"detail": [{"loc": ["body"], "msg": "no"}]}, "no"),
        ({"errors": [{"message": "no"}]}, "no"),
        ([{"error": {"code": 400, "message": "no"}}], "no"),
        ({"error": {"error": {"message": "no"}}}, "no"),
        ({"error": {"message": "Provider returned error", "metadata": {"raw": "no"}}}, "Provider returned error: no"),
        ({"error": {"code": 7}}, '{"code":7}'),
        ({"x": 1}, '{"x": 1}'),
        ("no", "no"),
    ],
)
def test_the_words_of_an_error_are_found_where_servers_put_them(body: object, words: str) -> None:
    assert shortened(words_of(json.dumps(body).encode())) == words


@pytest.mark.parametrize(
    "data", [b'{"error":' * 100_000 + b"1" + b"}" * 100_000, b"[" * 1000 + b"]" * 1000, b"\xff\xfe", b"x" * (64 << 20), b""]
)
def test_any_error_body_has_first_words(data: bytes) -> None:
    assert len(shortened(words_of(data))) <= 503
    assert completion_of(400, data, "words") is not None
