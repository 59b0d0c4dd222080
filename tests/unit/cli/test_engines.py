"""What `chainette engines` may show of an endpoint."""

from __future__ import annotations

import pytest

from chainette.cli.engines import without_password


@pytest.mark.parametrize(
    "url, shown",
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("https://user:hunter2@host:1/v1", "https://host:1/v1"),
        ("https://host/v1?api-key=hunter2#hunter2", "https://host/v1"),
        ("https://${USER}:${KEY}@host/v1", "https://host/v1"),
    ],
)
def test_secrets_in_urls_are_left_out(url: str, shown: str) -> None:
    assert without_password(url) == shown
