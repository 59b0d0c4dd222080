"""chainette.toml and CHAINETTE_* variables: where they are found, which of them counts, and their errors."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from chainette.cli.project_file import KEYS, Default, default_map, defaults_of, variables_of
from chainette.core.run_settings import FLAGS
from chainette.errors import SettingsError
from tests.support.cli import REPOSITORY


def written(folder: Path, text: str) -> Path:
    (folder / "chainette.toml").write_text(f"# defaults\n[run]\n{text}\n")
    return folder


def test_every_setting_of_a_run_is_a_key_and_the_page_names_only_keys() -> None:
    assert len(KEYS) == len(FLAGS) + 4
    page = (REPOSITORY / "docs/configuration.md").read_text(encoding="utf-8")
    words = (
        word for line in page.splitlines() if line.startswith("| `") for word in re.findall(r"`([a-z-]+)`", line.split("|")[1])
    )
    named = {*words}
    assert named <= {*KEYS} and len(named) > 7


def test_a_variable_wins_over_the_file_and_both_name_their_origin(tmp_path: Path) -> None:
    written(tmp_path, 'seed = 7\nprice = "a=in:1"\nmax_reject_rate = 0.5')
    found = defaults_of(tmp_path, {"CHAINETTE_SEED": "9", "CHAINETTE_PRICE": "a=in:1,out:2 b=gpu_hour:2", "OTHER": "x"})
    assert {(default.key, default.value, default.origin) for default in found} == {
        ("seed", 9, "$CHAINETTE_SEED"),
        ("price", ("a=in:1,out:2", "b=gpu_hour:2"), "$CHAINETTE_PRICE"),
        ("max-reject-rate", 0.5, "chainette.toml:5"),
    }


def test_the_nearest_file_counts_up_to_the_root_of_the_repository(tmp_path: Path) -> None:
    inner = tmp_path / "repository" / "deep"
    inner.mkdir(parents=True)
    written(tmp_path, "seed = 1")
    assert defaults_of(inner, {}) == [Default("seed", 1, "../../chainette.toml:3")]
    (tmp_path / "repository/.git").mkdir()
    assert defaults_of(inner, {}) == []
    written(inner, "seed = 2")
    assert defaults_of(inner, {}) == [Default("seed", 2, "chainette.toml:3")]


def test_paths_are_relative_to_the_file_and_as_short_as_they_can_be(tmp_path: Path) -> None:
    inner = tmp_path / "deep"
    inner.mkdir()
    (tmp_path / "engines.yml").touch()
    written(tmp_path, 'engines = "engines.yml"\nruns = "deep/results"')
    values = {default.key: default.value for default in defaults_of(inner, {})}
    assert values == {"engines": str(tmp_path / "engines.yml"), "runs": "results"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sede = 7", "chainette.toml:3: there is no key 'sede'; did you mean 'seed'?"),
        ('seed = "many"', "chainette.toml:3: seed is 'many': Expected `int`, got `str`"),
        ("batch-size = 0", "chainette.toml:3: batch_size is 0; it must be 1 or more"),
        ('engines = "none.yml"', "chainette.toml:3: engines is none.yml, which does not exist"),
        ('redis = "redis://me:secret@host/0"', "put the URL into the environment: CHAINETTE_REDIS_URL"),
        ("seed =", "chainette.toml: Invalid value"),
        ("[engine]", "chainette.toml:3: there is no 'engine'; all keys belong below [run]"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_line(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)) as raised:
        defaults_of(written(tmp_path, line), {})
    assert "secret" not in str(raised.value)


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "seed = 7")
    os.chown(tmp_path / "chainette.toml", os.geteuid() + 1, -1) if os.geteuid() == 0 else monkeypatch.setattr(
        os, "geteuid", lambda: 1
    )
    with pytest.raises(SettingsError, match="belongs to another user"):
        defaults_of(tmp_path, {})


def test_a_command_gets_the_keys_that_are_about_it(tmp_path: Path) -> None:
    (tmp_path / "e.yml").touch()
    defaults = defaults_of(
        written(
            tmp_path,
            'seed = 7\nlimit = 5\nbudget = "2usd"\nprice = "a=in:1"\nwindow = 9\n'
            'engines = "e.yml"\nruns = "r"\nredis = "redis://h/1"\numask = "027"',
        ),
        {},
    )
    found = default_map(defaults)
    kept = {"seed": 7, "limit": 5, "budget": ("2usd",), "price": ("a=in:1",), "engines_file": "e.yml"}
    assert found["run"] == kept | {"window": 9, "runs": "r"}
    assert found["resume"] == found["rejected"] == {"window": 9}, "the log has the rest"
    assert "limit" not in found.get("rows", {}) and found["ls"] == {"folder": "r"}
    assert found["warmup"]["engines"] == "e.yml"
    assert variables_of(defaults) == {"CHAINETTE_REDIS_URL": "redis://h/1", "CHAINETTE_UMASK": "027"}


def test_a_user_without_a_home_and_a_folder_that_may_not_be_searched_are_no_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user id the system does not know
    monkeypatch.setattr(Path, "is_file", lambda _path: (_ for _ in ()).throw(PermissionError))
    assert defaults_of(tmp_path, {"CHAINETTE_RUNS": "~/runs"}) == [Default("runs", "~/runs", "$CHAINETTE_RUNS")]
