"""The chain of this cluster; put your own here."""

from pydantic import BaseModel

from chainette import Chain, Step, register_engine


class Review(BaseModel):
    text: str


class Facts(BaseModel):
    product: str
    complaints: list[str]


register_engine("llama", model="meta-llama/Llama-3.1-8B-Instruct", backend="vllm")

extract = Step(
    id="extract",
    input_model=Review,
    output_model=Facts,
    engine_name="llama",
    user_prompt="Which product, and what is wrong with it?\n{{ text }}",
)

chain = Chain(name="reviews", steps=[extract])
