"""A chain made by a function: the tone and the languages are chosen on the command line."""

from typing import Literal

from pydantic import BaseModel, Field

from chainette import Branch, Chain, Step, register_engine


class Notice(BaseModel):
    text: str


class Rewritten(BaseModel):
    text: str = Field(max_length=300)


register_engine("writer", model="any", backend="openai", endpoint="http://127.0.0.1:8000/v1")


def make(tone: Literal["formal", "friendly"] = "formal", languages: tuple[str, ...] = ("German",)) -> Chain:
    """Rewrites each notice in a tone, then translates it into each language in a branch of its own."""
    rewrite = Step(
        id="rewrite",
        input_model=Notice,
        output_model=Rewritten,
        engine_name="writer",
        user_prompt=f"Rewrite this notice in a {tone} tone, in two sentences at most:\n{{{{ text }}}}",
    )
    return Chain(name="notices", steps=[rewrite, [_translation(language) for language in languages]])


def _translation(language: str) -> Branch:
    name = language.lower()
    step = Step(
        id=f"to_{name}",
        output_model=Rewritten,
        engine_name="writer",
        user_prompt=f"Translate into {language}: {{{{ rewrite.text }}}}",
    )
    return Branch(name, [step])
