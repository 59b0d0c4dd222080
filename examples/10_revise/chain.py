"""A product text is drafted and judged until the judge is content, three times at most; else the best draft is kept."""

from pydantic import BaseModel, Field

from chainette import Chain, Loop, Step, register_engine


class Product(BaseModel):
    name: str
    facts: str


class Draft(BaseModel):
    text: str = Field(max_length=400)


class Verdict(BaseModel):
    good_enough: bool
    score: int = Field(ge=0, le=10)
    advice: str = Field(max_length=200)


register_engine("writer", model="any", backend="openai", endpoint="http://127.0.0.1:8000/v1")

draft = Step(
    id="draft",
    input_model=Product,
    output_model=Draft,
    engine_name="writer",
    user_prompt="Advertise {{ name }} in two sentences. Facts: {{ facts }}"
    "{% if previous.draft and previous.judge %}\nImprove this draft: {{ previous.draft.text }}\n"
    "Advice: {{ previous.judge.advice }}{% endif %}",
)
judge = Step(
    id="judge",
    output_model=Verdict,
    engine_name="writer",
    user_prompt="Does this text name every fact, and nothing else?\nFacts: {{ chain_input.facts }}\nText: {{ draft.text }}",
)

chain = Chain(
    name="revise",
    steps=[
        Loop(
            "revise",
            steps=[draft, judge],
            until="{{ judge.good_enough }}",
            best="{{ judge.score }}",
            max_rounds=3,
        ).join("final"),
    ],
)
