"""The sampling parameters of a request, and the grammar that holds its answer to a schema."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from chainette.engine.base import Request
from chainette.engine.grammar_fit import VALIDATED_LATER, fitted
from chainette.engine.vllm.chat_tokens import TEMPLATE_KEY
from chainette.utils.user_errors import first_line

__all__ = ["AnswerSchemas", "sampling_of"]

_log = logging.getLogger("chainette")


def sampling_of(request: Request, schema: str | None, *, streams: bool) -> Any:
    """vLLM's parameters of a request whose answer is held to a schema."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    sampling = request.sampling
    chosen = {
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "stop": list(sampling.stop) or None,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": request.seed if sampling.temperature > 0 else None,  # a generator per row costs the GPU time
        "structured_outputs": StructuredOutputsParams(json=schema) if schema is not None else None,
    }
    return SamplingParams(
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens,
        output_kind=RequestOutputKind.DELTA if streams else RequestOutputKind.FINAL_ONLY,
        **{key: value for key, value in chosen.items() if value is not None},
        **{key: value for key, value in sampling.extra.items() if key != TEMPLATE_KEY},
    )


class AnswerSchemas:
    """The schemas that answers are held to, each found once."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[dict[str, Any], str | None]] = {}

    def of(self, request: Request) -> str | None:
        """The schema of a request as vLLM's grammars can express it; None if they cannot."""
        known = self._found.get(id(request.schema))
        if known is None or known[0] is not request.schema:
            known = self._found[id(request.schema)] = request.schema, _fitted(request)
        return known[1]


def _fitted(request: Request) -> str | None:
    schema, problem = fitted(request.schema, _misfit)
    if problem:
        _log.warning("%s: %s; %s", request.schema_name, problem, VALIDATED_LATER)
    return msgspec.json.encode(schema).decode() if schema is not None else None


def _misfit(schema: dict[str, Any]) -> str:
    """Why vLLM refuses a schema; "" if it accepts it."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

    try:
        validate_xgrammar_grammar(SamplingParams(structured_outputs=StructuredOutputsParams(json=schema)))
    except Exception as error:
        return first_line(error)
    return ""
