"""The JSON object in an answer's text, whatever the model writes around it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainette.engine.unwrapped_answer import holds_object, unwrapped

GOOD = '{"label": "ok"}'
FENCE = "`" * 3

WRAPPED = {
    "plain": GOOD,
    "blanks around it": f"\n\t {GOOD} \n",
    "a byte order mark": f"\ufeff{GOOD}",
    "a fence": f"{FENCE}\n{GOOD}\n{FENCE}",
    "a fence with a language": f"{FENCE}json\n{GOOD}\n{FENCE}",
    "a fence in upper case": f"{FENCE}JSON\n{GOOD}\n{FENCE}",
    "a fence with a blank": f"{FENCE} json\n{GOOD}\n{FENCE}",
    "a fence of another language": f"{FENCE}javascript\n{GOOD}\n{FENCE}",
    "a fence on one line": f"{FENCE}json {GOOD}{FENCE}",
    "a fence that is not closed": f"{FENCE}json\n{GOOD}",
    "a fence that is not opened": f"{GOOD}\n{FENCE}",
    "tildes": f"~~~\n{GOOD}\n~~~",
    "single ticks": f"`{GOOD}`",
    "words before": f"Here is the label: {GOOD}",
    "words behind": f"{GOOD}\n\nI hope this helps!",
    "words and a fence": f"Sure!\n{FENCE}json\n{GOOD}\n{FENCE}\nDone.",
    "a name in braces": f"For {{text}} and {{{{ x }}}} the label is {GOOD}",
    "tags": f"<answer>{GOOD}</answer>",
    "an end token": f"{GOOD}<|im_end|>",
    "another end token": f"{GOOD}</s>",
    "the end of a sequence": f"{GOOD}<|endoftext|><|eot_id|>",
    "a cut repetition": f"{GOOD}\n[",
    "a JSON string": json.dumps(GOOD),
    "a JSON string with blanks around it": f"\n {json.dumps(GOOD)} ",
    "a JSON string with a fence in it": json.dumps(f"{FENCE}json\n{GOOD}\n{FENCE}"),
    "brackets in the words": f"[1] As asked [see above], {GOOD}",
}


@pytest.mark.parametrize("text", WRAPPED.values(), ids=WRAPPED)
def test_wrappings_are_taken_off_an_answer(text: str) -> None:
    assert unwrapped(text) == ("", GOOD)
    assert holds_object(text)


THOUGHTFUL = {
    "think": f"<think>hm</think>{GOOD}",
    "thinking": f"<thinking>\nhm\n</thinking>\n{GOOD}",
    "upper case": f"<THINK>hm</THINK>{GOOD}",
    "thought": f"<thought>hm</thought>{GOOD}",
    "reasoning": f"<reasoning>hm</reasoning>{GOOD}",
    "Mistral": f"[THINK]hm[/THINK]{GOOD}",
    "Kimi": f"◁think▷hm◁/think▷{GOOD}",
    "Seed": f"<seed:think>hm</seed:think>{GOOD}",
    "OpenThinker": f"<|begin_of_thought|>hm<|end_of_thought|>{GOOD}",
    "Cohere": f"<|START_THINKING|>hm<|END_THINKING|>{GOOD}",
    "closed without being opened": f"hm\n</think>\n\n{GOOD}",
    "Mistral, not opened": f"hm[/THINK]{GOOD}",
    "a fence behind": f"<think>hm</think>\n{FENCE}json\n{GOOD}\n{FENCE}",
    "channels": f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{GOOD}<|return|>",
    "channels that constrain": f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final <|constrain|>json"
    f"<|message|>{GOOD}",
    "channels from inside": f"hm<|end|><|start|>assistant<|channel|>final<|message|>{GOOD}",
    "channels without tokens": f"analysishmassistantfinal{GOOD}",
}


@pytest.mark.parametrize("text", THOUGHTFUL.values(), ids=THOUGHTFUL)
def test_thoughts_are_told_from_the_answer(text: str) -> None:
    assert unwrapped(text) == ("hm", GOOD)


def test_a_draft_in_the_thoughts_is_no_answer() -> None:
    assert unwrapped('<think>maybe {"label": "no"}?</think>' + GOOD) == ('maybe {"label": "no"}?', GOOD)
    assert not holds_object('<think>maybe {"label": "no"}?</think>I cannot tell.')


def test_several_blocks_of_thoughts_are_all_thoughts() -> None:
    assert unwrapped(f"<think>a</think>\n<think>b</think>{GOOD}") == ("a\nb", GOOD)


def test_thoughts_without_an_answer_leave_nothing() -> None:
    assert unwrapped("</think>") == ("", "")
    assert unwrapped("<think>hm</think>  ") == ("hm", "")


AMBIGUOUS = {
    "two objects": f"{GOOD}\n{GOOD}",
    "a list of one": f"[{GOOD}]",
    "a list that is cut": f'[{GOOD}, {{"label',
    "an object inside one that is cut": f'{{"answer": {GOOD}, "more": "cu',
    "an object inside one that is not JSON": f"{{answer: {GOOD}}}",
    "an object that is cut behind the answer": f'{GOOD} {{"lab',
    "no object": "I cannot tell.",
    "text": '"ok"',
    "a JSON string of two objects": json.dumps(f"{GOOD}\n{GOOD}"),
    "an object that was encoded three times": json.dumps(json.dumps(GOOD)),
    "a JSON string that is cut": json.dumps(GOOD)[:-1],
    "nothing": "",
    "very deep": '{"a":' * 100_000,
    "very deep in words": "So: " + "{" * 100_000,
}


@pytest.mark.parametrize("text", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_nothing_is_guessed_where_more_or_less_than_one_object_is_left(text: str) -> None:
    assert unwrapped(text) == ("", text.strip())
    assert not holds_object(text)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from('{}[]":,`<>/|thinkaX 1\n\\\ufeff')), st.text(max_size=20), st.text(max_size=20))
def test_any_text_is_read_and_an_object_found_is_json(text: str, before: str, behind: str) -> None:
    for wrapped in (text, before + GOOD + behind, f"<think>{text}</think>{GOOD}"):
        answer = unwrapped(wrapped)[1]
        assert answer in wrapped or wrapped.lstrip().startswith('"') or "</" in wrapped
        if holds_object(wrapped):
            assert isinstance(json.loads(answer), dict)
