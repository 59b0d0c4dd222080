"""Support tickets take different ways by their kind, and come together again for one reply."""

from typing import Literal

from pydantic import BaseModel, Field

from chainette import Chain, Route, Step, register_engine


class Ticket(BaseModel):
    customer: str
    text: str


class Kind(BaseModel):
    kind: Literal["refund", "bug", "question"]


class Offer(BaseModel):
    what: Literal["offer"] = "offer"
    euros: int = Field(ge=0, le=500)


class Report(BaseModel):
    what: Literal["report"] = "report"
    title: str = Field(max_length=80)
    severity: Literal["low", "high"]


class Reply(BaseModel):
    text: str = Field(max_length=400)


register_engine("writer", model="any", backend="openai", endpoint="http://127.0.0.1:8000/v1")


def ask(id: str, output_model: type[BaseModel], prompt: str) -> Step:
    return Step(id=id, output_model=output_model, engine_name="writer", user_prompt=prompt)


classify = Step(
    id="classify",
    input_model=Ticket,
    output_model=Kind,
    engine_name="writer",
    user_prompt="What does this customer want?\n{{ text }}",
)
offer = ask("offer", Offer, "How much do we pay back?\n{{ chain_input.text }}")
file_report = ask("file_report", Report, "Write a bug report for the developers:\n{{ chain_input.text }}")
reply = ask(
    "reply",
    Reply,
    "Write to {{ chain_input.customer }}, who wrote: {{ chain_input.text }}\n"
    "{% if not handled %}Answer the question."
    "{% elif handled.what == 'offer' %}We pay back {{ handled.euros }} euros."
    "{% else %}We filed the bug {{ handled.title }}.{% endif %}",
)

chain = Chain(
    name="triage",
    steps=[
        classify,
        Route(
            "handle",
            on="{{ classify.kind }}",
            cases={"refund": [offer], "bug": [file_report], "question": []},
        ).join("handled"),
        reply,
    ],
)
