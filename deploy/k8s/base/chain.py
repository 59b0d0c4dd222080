"""The chain of this cluster; put your own here."""

from typing import Annotated

from pydantic import BaseModel, Field

from chainette import Chain, Step, register_engine


class Review(BaseModel):
    text: str


Short = Annotated[str, Field(max_length=200)]


class Facts(BaseModel):
    product: Short
    complaints: list[Short] = Field(max_length=10)


register_engine("llama", model="meta-llama/Llama-3.1-8B-Instruct", backend="vllm")

extract = Step(
    id="extract",
    input_model=Review,
    output_model=Facts,
    engine_name="llama",
    user_prompt="Which product, and what is wrong with it?\n{{ text }}",
)

chain = Chain(name="reviews", steps=[extract])
