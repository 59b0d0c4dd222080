"""The HTTP endpoint of a process."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request

import pytest
from chainette_workers.metrics.endpoint import Endpoint, Route, Unavailable, serving, targets

from chainette.errors import RunError
from chainette.fleet.protocol.member_fields import Member
from tests.support.patience import LONG

ROUTES: dict[str, Route] = {"/metrics": lambda accept: ("text/plain", f"for {accept}".encode())}


def get(address: str, path: str = "/metrics") -> bytes:
    request = urllib.request.Request(f"http://{address}{path}", headers={"Accept": "me"})
    with urllib.request.urlopen(request, timeout=LONG) as reply:
        return bytes(reply.read())


def test_it_listens_on_loopback_and_a_free_port_unless_told_otherwise() -> None:
    with serving(Endpoint(), ROUTES) as one, serving(Endpoint(), ROUTES) as other:
        assert one.startswith("127.0.0.1:") and other.startswith("127.0.0.1:") and one != other
        assert get(one) == get(other) == b"for me"


def test_a_path_that_is_not_there_is_answered_with_those_that_are() -> None:
    with serving(Endpoint(), ROUTES) as address, pytest.raises(urllib.error.HTTPError) as error:
        get(address, "/")
    assert error.value.code == 404 and error.value.read() == b"here: /metrics\n"
    error.value.close()


def test_a_route_without_an_answer_says_so() -> None:
    def nothing(_accept: str) -> tuple[str, bytes]:
        raise Unavailable("Redis does not answer")

    with serving(Endpoint(), {"/sd": nothing}) as address, pytest.raises(urllib.error.HTTPError) as error:
        get(address, "/sd")
    assert error.value.code == 503 and error.value.read() == b"Redis does not answer\n"
    error.value.close()


def test_it_is_gone_at_the_end() -> None:
    with serving(Endpoint(), ROUTES) as address:
        port = int(address.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_port_that_is_taken_is_said_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(RunError, match=rf"127\.0\.0\.1:{port}: .*--metrics-port 0"),
            serving(Endpoint(port=port), ROUTES),
        ):
            pass


def test_a_client_that_says_nothing_holds_nobody_up() -> None:
    with serving(Endpoint(), ROUTES) as address:
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port))):
            assert get(address) == b"for me"


def test_one_that_listens_everywhere_is_named_as_redis_is_reached() -> None:
    with serving(Endpoint("0.0.0.0"), ROUTES, ("127.0.0.1", 6379)) as address:
        assert address.startswith("127.0.0.1:")
        assert get(address) == b"for me"
    with serving(Endpoint("0.0.0.0"), ROUTES, ("nowhere.invalid", 6379)) as address:
        assert address.startswith(f"{socket.gethostname()}:")


def test_processes_that_have_an_endpoint_are_found_by_prometheus() -> None:
    found = json.loads(
        targets(
            {
                "w1": Member(names="llama,python", metrics="10.0.0.1:9100", host="h", stop="1"),
                "w2": Member(names="llama"),
                "c1": Member(kind="coordinator", metrics="10.0.0.2:9100"),
            }
        )
    )
    assert found == [
        {"targets": ["10.0.0.2:9100"], "labels": {"worker": "c1", "role": "coordinator"}},
        {"targets": ["10.0.0.1:9100"], "labels": {"worker": "w1", "role": "worker", "serves": "llama,python", "host": "h"}},
    ]
