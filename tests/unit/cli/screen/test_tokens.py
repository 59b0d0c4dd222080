"""Texts that come side by side are written one after the other; nothing of a model reaches the terminal as a command."""

from __future__ import annotations

from pathlib import Path

from chainette.cli.screen.tokens import Tokens, Turns
from chainette.core.streaming import Asked, Passed, Piece, Unusable
from chainette.records import Message, Rejection, Row


def test_the_oldest_text_is_written_as_it_grows_and_the_next_when_it_ends() -> None:
    written: list[str] = []
    turns = Turns(written.append)
    turns.add("a", "A1")
    turns.add("b", "B1")
    turns.add("c", "C1")
    assert written == ["A1"]
    turns.end("c", "C end")
    turns.add("a", "A2")
    turns.end("a", "A end")
    assert "".join(written) == "A1A2\nA end\n\nB1"
    turns.add("b", "B2")
    turns.end("b", "B end")
    assert "".join(written) == "A1A2\nA end\n\nB1B2\nB end\n\nC1\nC end\n\n"


def test_a_line_of_somebody_else_has_a_line_of_its_own() -> None:
    written: list[str] = []
    turns = Turns(written.append)
    turns.interrupt("first")
    turns.add("a", "text")
    turns.interrupt("second")
    turns.finish_line()
    assert "".join(written) == "first\ntext\nsecond\n"


def test_a_line_that_can_wait_cuts_no_text_in_two() -> None:
    written: list[str] = []
    turns = Turns(written.append)
    turns.between("first")
    turns.add("a", "te")
    turns.between("second")
    turns.add("b", "other")
    turns.add("a", "xt")
    turns.end("a", "A end")
    turns.end("b", "B end")
    assert "".join(written) == "first\ntext\nA end\n\nsecond\n\nother\nB end\n\n"


def told(*events: object) -> str:
    written: list[str] = []
    tokens = Tokens(Path("out"), written.append)
    for event in events:
        tokens.on_stream(event)  # type: ignore[arg-type]
    return "".join(written)


def asked(number: int = 1) -> Asked:
    return Asked("sum", "0", number, (Message("user", "?"),))


def piece(text: str, number: int = 1) -> Piece:
    return Piece("sum", "0", number, text, "")


def test_asks_and_what_became_of_them() -> None:
    text = told(
        asked(),
        piece('{"a"'),
        Unusable("sum", "0", 1, "not_json", "EOF"),
        asked(2),
        piece("{}", 2),
        Passed("sum", Row("0", {"sum": b"{}"})),
        Rejection("1", "sum", "template_error", "no x", 0, None, 2),
    )
    assert text == (
        'sum, row 0\n{"a"\nnot usable (not_json): EOF; asked again\n\n'
        "sum, row 0, ask 2\n{}\nvalidated\n\n"
        "sum, row 1\nrejected (template_error): no x\n\n"
    )


def test_an_answer_that_breaks_off_is_begun_anew_below() -> None:
    assert told(asked(), piece("{"), asked(), piece("{}")) == ("sum, row 0\n{\nit broke off and starts again\n\nsum, row 0\n{}")


def test_control_characters_of_a_model_are_written_escaped() -> None:
    assert told(asked(), piece("a\x1b[2Jb\x9bc\td\n")) == "sum, row 0\na\\x1b[2Jb\\x9bc\td\n"
