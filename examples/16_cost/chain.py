"""Reviews are summed up by one engine and judged by another, each with a price: the plan and the bill."""

from pydantic import BaseModel, Field

from chainette import Chain, Step, register_engine


class Review(BaseModel):
    text: str


class Summary(BaseModel):
    summary: str = Field(max_length=120)


class Verdict(BaseModel):
    recommended: bool
    score: int


# Simulated, so that the example runs anywhere. The judge stands for a model on a GPU of your own, and errs now and then.
register_engine("writer", "a-hosted-model", "simulated", latency=0.01, price={"in": 0.15, "out": 0.6})
register_engine("judge", "a-model-on-a-gpu", "simulated", latency=0.02, invalid_rate=0.05, price={"gpu_hour": 2.5})

sum_up = Step(
    id="sum_up", input_model=Review, output_model=Summary, engine_name="writer", user_prompt="Sum up in a sentence: {{ text }}"
)
judge = Step(
    id="judge", output_model=Verdict, engine_name="judge", user_prompt="Would the writer buy it again? {{ input.summary }}"
)

chain = Chain(name="reviews", batch_size=16, steps=[sum_up, judge])
