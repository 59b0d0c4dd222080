"""Two models that do not fit on one GPU together: one answers customers, a larger one judges the answers."""

from pydantic import BaseModel, Field

from chainette import Chain, SamplingParams, Step, register_engine


class Complaint(BaseModel):
    text: str


class Reply(BaseModel):
    text: str = Field(max_length=300)
    refund: bool


class Grade(BaseModel):
    polite: int = Field(ge=1, le=5)
    helpful: int = Field(ge=1, le=5)


register_engine("writer", model="Qwen/Qwen2.5-7B-Instruct", max_model_len=4096)
register_engine("judge", model="Qwen/Qwen2.5-14B-Instruct", max_model_len=4096)

reply = Step(
    id="reply",
    input_model=Complaint,
    output_model=Reply,
    engine_name="writer",
    system_prompt="You answer complaints to a shop, in two sentences at most.",
    user_prompt="{{ text }}",
    sampling=SamplingParams(temperature=0.7, max_tokens=200),
)

grade = Step(
    id="grade",
    output_model=Grade,
    engine_name="judge",
    system_prompt="You grade answers of a shop to complaints, from 1 (worst) to 5.",
    user_prompt="Complaint: {{ chain_input.text }}\nAnswer: {{ reply.text }}",
    sampling=SamplingParams(max_tokens=40),
)

chain = Chain(name="one_device", steps=[reply, grade], batch_size=4)
