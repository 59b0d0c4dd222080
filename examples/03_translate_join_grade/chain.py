"""Parallel branches: translate into two languages side by side, join the translations, grade them together."""

from typing import Literal

from pydantic import BaseModel, Field

from chainette import Branch, Chain, SamplingParams, Step, register_engine


class Sentence(BaseModel):
    text: str
    domain: str


class Translation(BaseModel):
    translation: str = Field(min_length=1, max_length=600)


class Grade(BaseModel):
    french_score: int = Field(ge=1, le=5)
    german_score: int = Field(ge=1, le=5)
    better: Literal["french", "german", "equal"]
    remark: str = Field(max_length=200)


# Any OpenAI-compatible server: `vllm serve Qwen/Qwen2.5-7B-Instruct`, llama.cpp's server, a hosted one.
register_engine(
    "translator",
    model="Qwen/Qwen2.5-7B-Instruct",
    backend="openai",
    endpoint="http://127.0.0.1:8000/v1",
)


def translate(language: str) -> Step[Sentence, Translation]:
    return Step(
        id=f"to_{language.lower()}",
        input_model=Sentence,
        output_model=Translation,
        engine_name="translator",
        sampling=SamplingParams(temperature=0, max_tokens=300),
        system_prompt=f"Translate the user's sentence into {language}. Keep names and numbers. Subject: {{{{ domain }}}}.",
        user_prompt="{{ text }}",
        emoji="🌍",
    )


grade = Step(
    id="grade",
    input_model=Sentence,
    output_model=Grade,
    engine_name="translator",
    sampling=SamplingParams(temperature=0, max_tokens=300),
    system_prompt="You grade translations from 1 (wrong) to 5 (perfect) for accuracy and style.",
    user_prompt="Original: {{ text }}\nFrench: {{ french.translation }}\nGerman: {{ german.translation }}",
    emoji="⚖️",
)

chain = Chain(
    name="translate_join_grade",
    steps=[
        [
            Branch("into_french", [translate("French")]).join("french"),
            Branch("into_german", [translate("German")]).join("german"),
        ],
        grade,
    ],
    emoji="🌍",
)
