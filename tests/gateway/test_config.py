"""Options: a flag before its variable before the default, and what cannot be is refused by name."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
from pathlib import Path

import pytest

from gateway.balancer import Policy
from gateway.config import Address, Config, ConfigError, add_options, parse_address, read_config
from gateway.queue import QueueOrder


def read(*flags: str, **environment: str) -> Config:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return read_config(parser.parse_args(flags), environment)


def refused(*flags: str, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*flags, **environment)
    return str(caught.value)


def test_nothing_given_is_the_defaults():
    assert read() == Config()


# (flag, another value than the default, the field, what it becomes)
OPTIONS = [
    ("--listen", "127.0.0.1:9000", "listen", Address("127.0.0.1", 9000)),
    ("--internal-listen", "[::1]:0", "internal_listen", Address("::1", 0)),
    ("--policy", "round-robin", "policy", Policy.ROUND_ROBIN),
    ("--queue-order", "fcfs", "queue_order", QueueOrder.FCFS),
    ("--queue-timeout", "1.5", "queue_timeout", 1.5),
    ("--queue-patience", "2", "queue_patience", 2.0),
    ("--max-queue-seconds", "10", "max_queue_seconds", 10.0),
    ("--segments", "whole", "whole", True),
    ("--first-characters", "50", "first_characters", 50),
    ("--segment-characters", "300", "segment_characters", 300),
    ("--look-ahead", "3", "look_ahead", 3),
    ("--max-characters", "1000", "max_characters", 1000),
    ("--max-tries", "2", "max_tries", 2),
    ("--stall-timeout", "0.5", "stall_timeout", 0.5),
    ("--request-timeout", "30", "request_timeout", 30.0),
    ("--reader-timeout", "40", "reader_timeout", 40.0),
    ("--drain-timeout", "0", "drain_timeout", 0.0),
    ("--default-model", "tone", "default_model", "tone"),
    ("--voice-alias", "anna=alto", "voice_aliases", (("anna", "alto"),)),
    ("--data-directory", "/srv/tts", "data_directory", Path("/srv/tts")),
    ("--log-level", "debug", "log_level", "debug"),
    ("--keys-file", "/etc/keys.json", "keys_file", Path("/etc/keys.json")),
    ("--trusted-proxies", "10.0.0.0/8", "trusted_proxies", (ipaddress.ip_network("10.0.0.0/8"),)),
    ("--idle-timeout", "20", "idle_timeout", 20.0),
    ("--body-timeout", "5", "body_timeout", 5.0),
    ("--connections-per-address", "8", "connections_per_address", 8),
    ("--log-format", "json", "log_format", "json"),
    ("--trace-endpoint", "http://127.0.0.1:4318", "trace_endpoint", "http://127.0.0.1:4318"),
]


@pytest.mark.parametrize(
    ("flag", "text", "name", "value"), OPTIONS, ids=lambda item: item if str(item)[:2] == "--" else ""
)
def test_a_flag_and_its_variable_mean_the_same(flag: str, text: str, name: str, value: object):
    variable = "TTS_GATEWAY_" + flag.removeprefix("--").replace("-", "_").upper()
    expected = dataclasses.replace(Config(), **{name: value})
    assert expected != Config()
    assert read(flag, text) == expected
    assert read(**{variable: text}) == expected
    assert read(flag, text, **{variable: "nonsense"}) == expected


def test_every_option_is_in_that_list_but_the_token_and_a_switch():
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert flags - {flag for flag, *_ in OPTIONS} == {"--worker-token-file", "--uvloop"}


def test_systemds_state_directory_is_the_data_directory_where_none_is_named():
    assert read(STATE_DIRECTORY="/var/lib/tts:/var/lib/other").data_directory == Path("/var/lib/tts")
    assert read("--data-directory", "/srv/tts", STATE_DIRECTORY="/var/lib/tts").data_directory == Path("/srv/tts")
    assert read(STATE_DIRECTORY="").data_directory is None


def test_uvloop_is_a_switch_with_a_variable():
    assert read("--uvloop").uvloop
    assert read(TTS_GATEWAY_UVLOOP="yes").uvloop
    assert not read(TTS_GATEWAY_UVLOOP="0").uvloop


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--queue-timeout", "-1"),
        ("--queue-timeout", "nan"),
        ("--max-tries", "0"),
        ("--max-tries", "101"),
        ("--stall-timeout", "0"),
        ("--request-timeout", "inf"),
        ("--drain-timeout", "-0.1"),
        ("--max-characters", "0"),
        ("--first-characters", "0"),
        ("--listen", "8080"),
        ("--listen", "127.0.0.1"),
        ("--listen", "127.0.0.1:"),
        ("--listen", "127.0.0.1:65536"),
        ("--listen", ":8080"),
        ("--listen", "127.0.0.1:http"),
        ("--internal-listen", "127.0.0.1:-1"),
        ("--voice-alias", "anna"),
        ("--voice-alias", "=alto"),
        ("--voice-alias", "anna="),
    ],
)
def test_what_cannot_be_is_refused_by_the_flags_name(flag: str, text: str):
    assert flag in refused(f"{flag}={text}")
    variable = "TTS_GATEWAY_" + flag.removeprefix("--").replace("-", "_").upper()
    assert flag in refused(**{variable: text})


@pytest.mark.parametrize(
    ("variable", "text", "flag"),
    [
        ("TTS_GATEWAY_QUEUE_TIMEOUT", "soon", "--queue-timeout"),
        ("TTS_GATEWAY_MAX_TRIES", "1.5", "--max-tries"),
        ("TTS_GATEWAY_POLICY", "best", "--policy"),
        ("TTS_GATEWAY_QUEUE_ORDER", "fifo", "--queue-order"),
        ("TTS_GATEWAY_SEGMENTS", "halves", "--segments"),
        ("TTS_GATEWAY_LOG_LEVEL", "loud", "--log-level"),
    ],
)
def test_a_variable_that_cannot_be_is_refused_as_a_flag_would_be(variable: str, text: str, flag: str):
    message = refused(**{variable: text})
    assert flag in message
    assert text in message


def test_several_aliases_come_from_repeated_flags_or_from_commas():
    pairs = (("anna", "alto"), ("bob", "bass"))
    assert read("--voice-alias", "anna=alto", "--voice-alias", "bob=bass").voice_aliases == pairs
    assert read(TTS_GATEWAY_VOICE_ALIAS="anna=alto,bob=bass").voice_aliases == pairs


def test_an_address_may_be_a_name_or_either_kind_of_number():
    assert parse_address("--listen", "localhost:80") == Address("localhost", 80)
    assert str(parse_address("--listen", "[::1]:80")) == "[::1]:80"
    assert str(parse_address("--listen", "127.0.0.1:0")) == "127.0.0.1:0"


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("box", False)],
)
def test_loopback_is_known_from_the_outside(host: str, is_loopback: bool):
    assert Address(host, 1).is_loopback is is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.1", "box"])
def test_a_link_that_others_can_reach_needs_a_token(host: str):
    message = refused("--internal-listen", f"{host}:8081")
    assert "TTS_WORKER_TOKEN" in message
    assert host in message
    assert read("--internal-listen", f"{host}:8081", TTS_WORKER_TOKEN="secret").worker_token == "secret"


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.1", "box"])
def test_a_public_listener_that_others_can_reach_needs_keys(host: str):
    message = refused("--listen", f"{host}:8080", TTS_WORKER_TOKEN="secret")
    assert "tts-gateway keys add --name NAME --keys-file FILE" in message
    assert host in message
    assert read("--listen", f"{host}:8080", "--keys-file", "keys.json").keys_file == Path("keys.json")


@pytest.mark.parametrize("text", ["everybody", "10.0.0.0/33", "10.0.0.1/8"])
def test_a_proxy_is_trusted_by_a_network_that_is_one(text: str):
    assert "--trusted-proxies must be networks" in refused("--trusted-proxies", text)


def test_no_proxy_need_be_trusted():
    assert read("--trusted-proxies", "").trusted_proxies == ()


@pytest.mark.parametrize("token", ["two words", "schl\u00fcssel", "line\nbreak"])
def test_a_token_that_no_header_can_hold_is_refused(token: str):
    assert "printable ASCII" in refused(TTS_WORKER_TOKEN=token)


def test_the_token_comes_from_a_file_before_its_variable(tmp_path: Path):
    file = tmp_path / "token"
    file.write_text("  from-file\n")
    assert read("--worker-token-file", str(file), TTS_WORKER_TOKEN="other").worker_token == "from-file"
    assert read(TTS_WORKER_TOKEN_FILE=str(file)).worker_token == "from-file"
    assert read(TTS_WORKER_TOKEN=" from-variable ").worker_token == "from-variable"


def test_a_token_file_that_is_missing_or_empty_is_refused(tmp_path: Path):
    assert "--worker-token-file" in refused("--worker-token-file", str(tmp_path / "none"))
    (tmp_path / "empty").write_text("\n")
    assert "is empty" in refused("--worker-token-file", str(tmp_path / "empty"))


def test_the_token_is_not_in_what_a_log_would_show():
    assert "secret" not in repr(read(TTS_WORKER_TOKEN="secret"))
