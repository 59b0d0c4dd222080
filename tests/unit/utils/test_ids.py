"""Folder names from ids."""

from __future__ import annotations

import unicodedata

import pytest

from chainette.utils.ids import folder_key, snake_case


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("ExtractName", "extract_name"),
        ("HTTPServer2Go", "http_server2_go"),
        ("extract-name  again", "extract_name_again"),
        ("_a__b_", "a_b"),
        ("步骤", "步骤"),
        ("Ответ", "ответ"),
        ("ОтветДва2", "ответ_два2"),
        ("हिन्दी", "हिन्दी"),
        ("résumé", "résumé"),
        ("a🙂b", "a_b"),
        ("../.git", "git"),
    ],
)
def test_a_folder_keeps_the_letters_of_every_script(name: str, folder: str) -> None:
    assert snake_case(name) == folder


def test_a_folder_name_is_normalized_however_its_id_is_written() -> None:
    assert snake_case(unicodedata.normalize("NFD", "résumé")) == unicodedata.normalize("NFC", "résumé")


@pytest.mark.parametrize("name", ["", "_", "__", "🙂", "..", "/"])
def test_a_folder_always_has_a_name(name: str) -> None:
    assert snake_case(name) == "unnamed"


@pytest.mark.parametrize("name", ["con", "CON", "Prn", "aux", "nul", "COM1", "lpt9"])
def test_a_folder_is_never_a_windows_device(name: str) -> None:
    assert snake_case(name) == f"{name.lower()}_"


def test_a_long_id_gives_a_short_folder_that_stays_distinct() -> None:
    first, second = snake_case("步" * 90 + "a"), snake_case("步" * 90 + "b")
    assert first != second
    assert len(first.encode()) <= 100 and first.startswith("步步步")
    assert snake_case("x" * 100) == "x" * 100 and len(snake_case("x" * 101)) == 100


@pytest.mark.parametrize(("one", "other"), [("straße", "strasse"), ("ﬁeld", "field"), ("Ａ", "a"), ("ς", "σ")])
def test_folders_that_some_file_system_treats_as_one_have_the_same_key(one: str, other: str) -> None:
    assert folder_key(snake_case(one)) == folder_key(snake_case(other))
