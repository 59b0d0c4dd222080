"""Sorts messages of customers and answers them. Another tone asks for the replies again, and for nothing else (`--reuse`)."""

from typing import Literal

from pydantic import BaseModel, Field

from chainette import Chain, SamplingParams, Step, register_engine


class Mail(BaseModel):
    text: str


class Subject(BaseModel):
    subject: Literal["billing", "delivery", "product"]
    urgent: bool


class Answer(BaseModel):
    answer: str = Field(max_length=200)


register_engine("writer", model="any", backend="openai", endpoint="http://127.0.0.1:8000/v1")


def make(tone: Literal["formal", "friendly"] = "formal") -> Chain:
    """The tone appears in the prompt of the last step only."""
    sort = Step(
        id="sort",
        input_model=Mail,
        output_model=Subject,
        engine_name="writer",
        user_prompt="What is this message about, and is it urgent?\n{{ text }}",
    )
    reply = Step(
        id="reply",
        output_model=Answer,
        engine_name="writer",
        user_prompt=f"Answer this message about {{{{ sort.subject }}}} in a {tone} tone:\n{{{{ chain_input.text }}}}",
        sampling=SamplingParams(temperature=0.8),
    )
    return Chain(name="mail", steps=[sort, reply])
