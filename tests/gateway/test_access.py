"""Which scope a route needs, and where a request really comes from. Pure parts; tests/e2e/test_keys.py has the rest."""

from __future__ import annotations

import ipaddress

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from gateway.address import is_loopback
from gateway.api.access import client_address, internal_scopes_for, presented_key, scopes_for
from gateway.config import Config
from gateway.keys import Scope

SPEAK, VOICES, ADMIN, METRICS = ({scope} for scope in Scope)


@pytest.mark.parametrize(
    ("method", "route", "scopes"),
    [
        ("GET", "/", None),
        ("GET", "/livez", None),
        ("GET", "/readyz", None),
        ("GET", "/openapi.json", None),
        ("GET", "/static", None),
        ("GET", "/static/page.js", None),
        ("GET", "/health", SPEAK),
        ("POST", "/v1/tts", SPEAK),
        ("GET", "/v1/tts/stream", SPEAK),
        ("POST", "/v1/audio/speech", SPEAK),
        ("GET", "/v1/models/{id}", SPEAK),
        ("GET", "/v1/voices", SPEAK | VOICES),
        ("HEAD", "/v1/voices/{id}", SPEAK | VOICES),
        ("POST", "/v1/voices", VOICES),
        ("DELETE", "/v1/voices/{id}", VOICES),
        ("POST", "/v1/audio/voices", VOICES),
        # What nobody thought of is closed.
        ("GET", "/staticky", SPEAK),
        ("GET", "/v1/voicesx", SPEAK),
        ("POST", "/v1/anything/new", SPEAK),
        ("GET", "/metrics", SPEAK),
    ],
)
def test_each_public_route_needs_its_scope(method: str, route: str, scopes: set[Scope] | None):
    assert scopes_for(method, route) == scopes


def test_each_internal_route_needs_its_scope():
    assert internal_scopes_for("/metrics") == METRICS | ADMIN
    assert internal_scopes_for("/admin/prometheus-targets") == METRICS | ADMIN  # Prometheus reads both
    assert internal_scopes_for("/admin/workers") == ADMIN
    assert internal_scopes_for("/admin/workers/{id}/{command}") == ADMIN
    assert internal_scopes_for("/health") == ADMIN
    assert internal_scopes_for("/anything/new") == ADMIN
    # Probes, and the workers' link, which has a token of its own.
    for route in ("/livez", "/readyz", "/internal/workers"):
        assert internal_scopes_for(route) is None


def request_from(peer: str, *forwarded: str):
    class Transport:
        def get_extra_info(self, name: str, default: object = None) -> object:
            return (peer, 5000) if name == "peername" else default

        def is_closing(self) -> bool:
            return False

    headers = [("X-Forwarded-For", value) for value in forwarded]
    return make_mocked_request("GET", "/", headers=CIMultiDict(headers), transport=Transport())


LOOPBACK = Config().trusted_proxies
PRIVATE = (*LOOPBACK, ipaddress.ip_network("10.0.0.0/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "client"),
    [
        ("127.0.0.1", [], LOOPBACK, "127.0.0.1"),
        ("203.0.113.5", [], LOOPBACK, "203.0.113.5"),
        # A proxy on this machine says whom it was called by.
        ("127.0.0.1", ["203.0.113.5"], LOOPBACK, "203.0.113.5"),
        ("::1", ["2001:db8::7"], LOOPBACK, "2001:db8::7"),
        # A stranger who says that he is somebody else is not believed.
        ("203.0.113.5", ["127.0.0.1"], LOOPBACK, "203.0.113.5"),
        ("127.0.0.1", ["127.0.0.1, 203.0.113.5"], LOOPBACK, "203.0.113.5"),
        ("127.0.0.1", ["127.0.0.1", "203.0.113.5"], LOOPBACK, "203.0.113.5"),
        ("127.0.0.1", ["127.0.0.1, ::1,203.0.113.5 , 127.0.0.1"], LOOPBACK, "203.0.113.5"),
        # Nonsense is not this machine.
        ("127.0.0.1", ["localhost"], LOOPBACK, "unknown"),
        ("127.0.0.1", [""], LOOPBACK, "unknown"),
        ("127.0.0.1", ["127.0.0.1:80"], LOOPBACK, "unknown"),
        ("127.0.0.1", ["0x7f.1"], LOOPBACK, "unknown"),
        # Two proxies, where the outer one is known too.
        ("127.0.0.1", ["198.51.100.9, 10.1.2.3"], PRIVATE, "198.51.100.9"),
        ("127.0.0.1", ["198.51.100.9, 10.1.2.3"], LOOPBACK, "10.1.2.3"),
        # One address, one spelling.
        ("::ffff:203.0.113.5", [], LOOPBACK, "203.0.113.5"),
        ("::ffff:127.0.0.1", ["2001:DB8:0:0::7"], LOOPBACK, "2001:db8::7"),
        ("fe80::1%eth0", [], LOOPBACK, "fe80::1"),
        ("", [], LOOPBACK, "127.0.0.1"),
    ],
)
def test_a_client_is_where_the_last_trusted_hop_saw_it(peer, forwarded, trusted, client):
    assert client_address(request_from(peer, *forwarded), trusted) == client


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("unknown", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("::", False),
        ("169.254.169.254", False),
        ("", False),
    ],
)
def test_this_machine_is_loopback_and_nothing_else(address: str, loopback: bool):
    assert is_loopback(address) is loopback


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({}, ""),
        ({"Authorization": "Bearer abc"}, "abc"),
        ({"Authorization": "bearer  abc "}, "abc"),
        ({"Authorization": "Basic abc"}, ""),
        ({"Authorization": "abc"}, ""),
        ({"Sec-WebSocket-Protocol": "tts, bearer.abc"}, "abc"),
        ({"Sec-WebSocket-Protocol": "tts"}, ""),
        # Never from where it would be logged.
        ({"Cookie": "key=abc", "X-Api-Key": "abc"}, ""),
    ],
)
def test_a_key_comes_in_its_header_or_as_a_subprotocol(headers: dict[str, str], key: str):
    assert presented_key(make_mocked_request("GET", "/?key=xyz&api_key=xyz", headers=headers)) == key
