"""The HTTP endpoint of a process."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress

import pytest
from chainette_workers.metrics.address import MetricsEndpoint
from chainette_workers.metrics.endpoint import Route, Unavailable, serving, targets

from chainette.errors import RunError
from chainette.fleet.protocol.member_fields import Member, metrics_words
from chainette.fleet.protocol.seals import FleetKey, NoKey, Seals
from tests.support.patience import LONG

ROUTES: dict[str, Route] = {"/metrics": lambda accept: ("text/plain", f"for {accept}".encode())}


def get(address: str, path: str = "/metrics") -> bytes:
    request = urllib.request.Request(f"http://{address}{path}", headers={"Accept": "me"})
    with urllib.request.urlopen(request, timeout=LONG) as reply:
        return bytes(reply.read())


def test_it_listens_on_loopback_and_a_free_port_unless_told_otherwise() -> None:
    with serving(MetricsEndpoint(), ROUTES) as one, serving(MetricsEndpoint(), ROUTES) as other:
        assert one.startswith("127.0.0.1:") and other.startswith("127.0.0.1:") and one != other
        assert get(one) == get(other) == b"for me"


def test_an_unknown_path_is_answered_with_the_known_ones() -> None:
    with serving(MetricsEndpoint(), ROUTES) as address, pytest.raises(urllib.error.HTTPError) as error:
        get(address, "/")
    assert error.value.code == 404 and error.value.read() == b"not found; paths: /metrics\n"
    error.value.close()


def test_a_route_without_an_answer_gives_status_503() -> None:
    def nothing(_accept: str) -> tuple[str, bytes]:
        raise Unavailable("Redis does not answer")

    with serving(MetricsEndpoint(), {"/sd": nothing}) as address, pytest.raises(urllib.error.HTTPError) as error:
        get(address, "/sd")
    assert error.value.code == 503 and error.value.read() == b"Redis does not answer\n"
    error.value.close()


def test_an_unexpected_error_of_a_route_is_logged_and_its_words_stay_here(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_accept: str) -> tuple[str, bytes]:
        raise KeyError("run-7")

    routes: dict[str, Route] = {"/metrics": broken, "/sd": ROUTES["/metrics"]}
    with serving(MetricsEndpoint(), routes) as address:
        with pytest.raises(urllib.error.HTTPError) as error:
            get(address)
        assert error.value.code == 500 and b"run-7" not in error.value.read()
        error.value.close()
        assert get(address, "/sd") == b"for me"
    assert "KeyError: 'run-7'" in caplog.text


def test_it_is_gone_at_the_end() -> None:
    with serving(MetricsEndpoint(), ROUTES) as address:
        port = int(address.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_port_that_is_taken_is_an_error_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(RunError, match=rf"127\.0\.0\.1:{port}: .*--metrics-port 0"),
            serving(MetricsEndpoint(port=port), ROUTES),
        ):
            pass


def test_a_silent_client_does_not_delay_others() -> None:
    with serving(MetricsEndpoint(), ROUTES) as address:
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port))):
            assert get(address) == b"for me"


def test_an_endpoint_on_all_interfaces_is_named_by_the_address_that_reaches_redis() -> None:
    with serving(MetricsEndpoint("0.0.0.0"), ROUTES, ("127.0.0.1", 6379)) as address:
        assert address.startswith("127.0.0.1:")
        assert get(address) == b"for me"
    with serving(MetricsEndpoint("0.0.0.0"), ROUTES, ("nowhere.invalid", 6379)) as address:
        assert address.startswith(f"{socket.gethostname()}:")


NO_KEY = NoKey()

MEMBERS = {
    "w1": Member(names="llama,python", metrics="10.0.0.1:9100", host="h"),
    "w2": Member(names="llama"),
    "w3": Member(names="llama\x1b[2J" + 300 * "x", metrics="127.0.0.1:9100"),
    "w4": Member(metrics="http://10.0.0.1:9100/metrics?x="),
    "w5": Member(metrics="127.0.0.1.evil.example:80"),
    "c1": Member(kind="coordinator", metrics="[::1]:9100"),
}


def found(*, anywhere: bool, seals: Seals = NO_KEY) -> list[str]:
    return [target["targets"][0] for target in json.loads(targets(MEMBERS, seals, anywhere=anywhere))]


def test_prometheus_is_sent_to_this_machine_only_unless_told_otherwise() -> None:
    assert found(anywhere=False) == ["[::1]:9100", "127.0.0.1:9100"]
    assert found(anywhere=True) == ["[::1]:9100", "10.0.0.1:9100", "127.0.0.1:9100", "127.0.0.1.evil.example:80"]


def test_with_a_fleet_key_prometheus_is_sent_to_addresses_that_members_with_the_key_announced() -> None:
    key, other = FleetKey("0123456789abcdef"), FleetKey("fedcba9876543210")
    assert found(anywhere=False, seals=key) == ["[::1]:9100", "127.0.0.1:9100"]

    def member(address: str, seal: Seals, shown: str = "") -> Member:
        words = metrics_words(address, seal)
        return Member(metrics=shown or words["metrics"], metrics_seal=words["metrics_seal"])

    announced = {
        "ours": member("10.0.0.7:9100", key),
        "moved": member("10.0.0.7:9100", key, shown="10.0.0.8:9100"),
        "with another key": member("10.0.0.9:9100", other),
        "no address": member("http://10.0.0.7:9100/metrics?x=", key),
        "no seal": Member(metrics="10.0.0.10:9100", metrics_seal="é"),
    }
    sent = [target["targets"] for target in json.loads(targets(announced, key, anywhere=False))]
    assert sent == [["10.0.0.7:9100"]]
    assert json.loads(targets(announced, NO_KEY, anywhere=False)) == []


def test_a_target_has_short_labels_that_differ_from_those_of_metrics() -> None:
    _, first, second, _ = json.loads(targets(MEMBERS, NO_KEY, anywhere=True))
    assert first["labels"] == {"worker": "w1", "role": "worker", "serves": "llama,python", "host": "h"}
    assert second["labels"]["serves"] == "llama\\x1b[2J" + 188 * "x"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainette_workers.metrics.endpoint._PATIENCE", 0.3)


@pytest.mark.usefixtures("hurried")
def test_a_request_that_drips_in_is_cut_off_as_a_whole() -> None:
    with serving(MetricsEndpoint(), ROUTES) as address, connected(address) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n")
        with pytest.raises(OSError):
            while True:  # each byte comes well within the time of a single read
                client.sendall(b"X")
                time.sleep(0.01)


@pytest.mark.usefixtures("hurried")
def test_a_reader_that_reads_nothing_is_cut_off() -> None:
    big: dict[str, Route] = {"/metrics": lambda _accept: ("text/plain", bytes(64 << 20))}
    others = {*threading.enumerate()}
    with serving(MetricsEndpoint(), big) as address, connected(address) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert client.recv(1)
        until(lambda: not any("process_request" in thread.name for thread in {*threading.enumerate()} - others))


def test_a_request_ends_after_16_kib() -> None:
    with serving(MetricsEndpoint(), ROUTES) as address, connected(address) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n" + 16 * (b"X: " + 1020 * b"y" + b"\r\n"))
        assert client.recv(1000).startswith(b"HTTP/1.0 200")


def test_clients_beyond_the_most_are_turned_away_and_others_are_served_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chainette_workers.metrics.endpoint._MOST_CLIENTS", 2)
    with serving(MetricsEndpoint(), ROUTES) as address:
        with connected(address), connected(address), connected(address) as third:
            assert third.recv(1) == b""
        until(lambda: get(address) == b"for me")


def connected(address: str) -> socket.socket:
    host, _, port = address.partition(":")
    return socket.create_connection((host, int(port)), timeout=LONG)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        with suppress(OSError):
            if condition():
                return
        time.sleep(0.01)
    raise AssertionError("it never happened")
