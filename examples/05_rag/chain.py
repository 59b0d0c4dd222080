"""Retrieval in small: cut documents to passages, keep those that share words with the question, ask each passage."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from chainette import Chain, SamplingParams, Step, apply, register_engine


class Document(BaseModel):
    title: str
    text: str
    question: str


class Passage(BaseModel):
    title: str
    question: str
    passage: str
    #: Words of the question the passage holds.
    shared: int


class Answer(BaseModel):
    answerable: bool = Field(description="whether the passage alone answers the question")
    answer: str = Field(max_length=200, description="the answer in a few words; empty if there is none")


class Finding(BaseModel):
    title: str
    question: str
    answer: str
    passage: str


# Any OpenAI-compatible server: `vllm serve Qwen/Qwen2.5-7B-Instruct`, llama.cpp's server, a hosted one.
register_engine(
    "reader",
    model="Qwen/Qwen2.5-7B-Instruct",
    backend="openai",
    endpoint="http://127.0.0.1:8000/v1",
)

SENTENCES = 2
COMMON = frozenset(
    {"a", "an", "and", "are", "at", "by", "did", "does", "for", "from", "how", "in", "is", "it", "its", "many"}
    | {"of", "on", "the", "to", "was", "were", "what", "when", "where", "which", "who", "why"}
)


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower())) - COMMON


@apply
def passages(document: Document) -> list[Passage]:
    """Two sentences at a time; the two passages that share most words with the question."""
    sentences = re.split(r"(?<=[.!?])\s+", document.text)
    wanted = words(document.question)
    found = []
    for start in range(0, len(sentences), SENTENCES):
        text = " ".join(sentences[start : start + SENTENCES])
        found.append(Passage(title=document.title, question=document.question, passage=text, shared=len(wanted & words(text))))
    return sorted(found, key=lambda passage: -passage.shared)[:2]


read = Step(
    id="read",
    input_model=Passage,
    output_model=Answer,
    engine_name="reader",
    sampling=SamplingParams(temperature=0, max_tokens=150),
    system_prompt="Answer the question from the passage alone. Say so if the passage does not answer it.",
    user_prompt="Passage from '{{ title }}': {{ passage }}\n\nQuestion: {{ question }}",
    emoji="📖",
)


@apply
def findings(answer: Answer, history: Mapping[str, Any]) -> Finding | None:
    """Keeps the passages that answered, with where the answer comes from."""
    if not answer.answerable:
        return None
    passage = history["passages"]
    return Finding(title=passage.title, question=passage.question, answer=answer.answer, passage=passage.passage)


chain = Chain(name="rag", steps=[passages, read, findings], emoji="📚")
