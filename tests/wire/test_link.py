"""Messages of the control link: what is sent is what is read, and nothing that is sent can break the reader."""

from __future__ import annotations

import contextlib
import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.gpu import THROTTLE_REASONS, Gpu, GpuState
from wire.link import (
    Command,
    Hello,
    LinkError,
    Message,
    ModelInfo,
    Order,
    Refused,
    Status,
    Welcome,
    WorkerState,
    encode,
    parse,
)


def in_order(reasons: set[str]) -> tuple[str, ...]:
    return tuple(name for name in THROTTLE_REASONS if name in reasons)


NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
TEXTS = st.text(max_size=60)
WORDS = st.lists(st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True), max_size=3).map(tuple)
VOICES = st.lists(st.from_regex(r"[a-z0-9_-]{1,64}", fullmatch=True), max_size=3)
DEVICES = st.text(min_size=1, max_size=60).filter(str.isprintable)
COUNTS = st.integers(min_value=0, max_value=2**53)
SLOTS = st.integers(min_value=1, max_value=4096)
FIGURES = st.none() | st.floats(allow_nan=False, allow_infinity=False)
GPUS = st.builds(
    Gpu,
    device=TEXTS,
    state=st.sampled_from(GpuState),
    detail=TEXTS,
    uuid=TEXTS,
    name=TEXTS,
    age_seconds=st.floats(min_value=0, max_value=1e6),
    xid_errors=COUNTS,
    throttled_by=st.none() | st.sets(st.sampled_from(THROTTLE_REASONS)).map(in_order),
    **{field.name: FIGURES for field in fields(Gpu) if field.type == "float | None"},
    **{field.name: st.none() | COUNTS for field in fields(Gpu) if field.type == "int | None"},
)
MODELS = st.builds(
    ModelInfo,
    id=NAMES,
    sample_rate=st.integers(min_value=8_000, max_value=48_000),
    voices=VOICES.filter(bool).map(tuple),
    languages=WORDS,
    scripts=WORDS,
    parameters=WORDS,
    max_segment_characters=st.integers(min_value=16, max_value=8192),
    cloning=st.booleans(),
    watermark=st.sampled_from(["", "perth"]),
)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Hello,
        worker=NAMES,
        epoch=st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True),
        port=st.integers(min_value=1, max_value=65535),
        slots=SLOTS,
        device=DEVICES,
        models=st.lists(MODELS, min_size=1, max_size=3).map(tuple),
        state=st.sampled_from(WorkerState),
        protocol=COUNTS,
        split=st.lists(DEVICES, max_size=3).map(tuple),
        versions=st.dictionaries(TEXTS, TEXTS, max_size=4),
    ),
    st.builds(
        Status,
        state=st.sampled_from(WorkerState),
        in_flight=COUNTS,
        steps=COUNTS,
        slots=SLOTS,
        models=st.lists(MODELS, max_size=3).map(tuple),
        voices=VOICES.map(tuple),
        gpus=st.lists(GPUS, max_size=2).map(tuple),
        detail=TEXTS,
    ),
    st.builds(Welcome, gateway=TEXTS, status_interval_seconds=st.floats(min_value=0.01, max_value=60)),
    st.builds(Refused, code=TEXTS, message=TEXTS),
    st.builds(Order, command=st.sampled_from(Command)),
)
# What JSON can hold, and what Python's reader takes for JSON besides: NaN, Infinity, half a surrogate pair.
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text() | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
GPU = {"device": "cuda:0", "state": "ok"}
MODEL = {"id": "tone", "sample_rate": 24_000, "voices": ["a"], "languages": ["en"]}
HELLO: dict[str, Any] = {
    "type": "hello",
    "worker": "w0",
    "epoch": "e",
    "port": 8100,
    "slots": 2,
    "device": "cpu",
    "models": [MODEL],
}
STATUS: dict[str, Any] = {"type": "status", "state": "ready", "in_flight": 0, "steps": 0, "slots": 2}
WELCOME: dict[str, Any] = {"type": "welcome", "gateway": "g"}
REFUSED: dict[str, Any] = {"type": "refused", "code": "link_refused", "message": "no"}
ORDER: dict[str, Any] = {"type": "order", "command": "drain"}
ALL = (HELLO, STATUS, WELCOME, REFUSED, ORDER)
FIELDS = [(body, name) for body in ALL for name in body if name != "type"]


@given(MESSAGES)
def test_what_is_sent_is_what_is_read(message: Message) -> None:
    assert parse(encode(message)) == message


@given(MESSAGES)
def test_a_message_is_one_line_that_begins_with_its_type(message: Message) -> None:
    line = encode(message)
    assert line.startswith(f'{{"type":"{message.TYPE}"')
    assert "\n" not in line


@given(st.text())
def test_no_text_raises_anything_but_a_link_error(text: str) -> None:
    with contextlib.suppress(LinkError):
        parse(text)


@given(st.sampled_from(ALL), st.dictionaries(st.text(), ANYTHING, max_size=3), st.data())
def test_no_value_of_a_field_raises_anything_but_a_link_error(
    body: dict[str, Any], extra: dict[str, Any], data: st.DataObject
) -> None:
    optional = ["state", "protocol", "split", "versions", "voices", "gpus", "detail", "status_interval_seconds"]
    name = data.draw(st.sampled_from([*body, *optional]))
    text = json.dumps(extra | body | {name: data.draw(ANYTHING)})
    with contextlib.suppress(LinkError):
        parse(text)


@given(
    st.sampled_from(sorted([*MODEL, "scripts", "parameters", "max_segment_characters", "cloning", "watermark"])),
    ANYTHING,
)
def test_no_value_of_a_model_raises_anything_but_a_link_error(name: str, value: Any) -> None:
    with contextlib.suppress(LinkError):
        parse(json.dumps(HELLO | {"models": [MODEL | {name: value}]}))


@pytest.mark.parametrize("depth", [10, 400, 900, 930, 940, 950, 960, 970, 980, 990, 100_000])
@pytest.mark.parametrize("name", ["worker", "models", "split", "state", "versions"])
def test_nesting_of_any_depth_is_a_link_error_or_nothing(name: str, depth: int) -> None:
    inner = "[" * depth + "]" * depth
    text = json.dumps(HELLO | {name: "HERE"}).replace('"HERE"', inner)
    with pytest.raises(LinkError):
        parse(text)


@pytest.mark.parametrize(("body", "name"), FIELDS)
def test_a_message_without_a_required_field_is_refused(body: dict[str, Any], name: str) -> None:
    with pytest.raises(LinkError, match=f"bad {body['type']}"):
        parse(json.dumps({key: value for key, value in body.items() if key != name}))


@pytest.mark.parametrize(
    ("body", "change"),
    [
        (HELLO, {"worker": "UPPER"}),
        (HELLO, {"worker": ""}),
        (HELLO, {"worker": "a" * 65}),
        (HELLO, {"worker": "../etc"}),
        (HELLO, {"epoch": ""}),
        (HELLO, {"epoch": "e" * 65}),
        (HELLO, {"epoch": "e\r\nX-Evil: 1"}),
        (HELLO, {"device": ""}),
        (HELLO, {"device": "cuda:0\x1b[31m"}),
        (HELLO, {"split": ["cuda:0", "x" * 129]}),
        (HELLO, {"models": [MODEL | {"voices": ["../etc/passwd"]}]}),
        (HELLO, {"models": [MODEL | {"voices": ["Heart"]}]}),
        (HELLO, {"models": [MODEL | {"voices": ["a\r\nSet-Cookie: x"]}]}),
        (HELLO, {"models": [MODEL | {"voices": ["v" * 65]}]}),
        (HELLO, {"models": [MODEL | {"voices": [f"v{n}" for n in range(4097)]}]}),
        (HELLO, {"models": [MODEL | {"languages": ["e\n"]}]}),
        (HELLO, {"models": [MODEL | {"parameters": ["p" * 65]}]}),
        (HELLO, {"models": [MODEL | {"scripts": ["LATIN"] * 257}]}),
        (STATUS, {"voices": ["a b"]}),
        (HELLO, {"port": 0}),
        (HELLO, {"port": 65536}),
        (HELLO, {"port": float("inf")}),
        (HELLO, {"slots": 0}),
        (HELLO, {"slots": 4097}),
        (HELLO, {"state": "asleep"}),
        (HELLO, {"models": []}),
        (HELLO, {"models": [MODEL] * 17}),
        (HELLO, {"models": "tone"}),
        (HELLO, {"models": [None]}),
        (HELLO, {"models": [MODEL | {"id": "Tone!"}]}),
        (HELLO, {"models": [MODEL | {"sample_rate": 7999}]}),
        (HELLO, {"models": [MODEL | {"sample_rate": float("nan")}]}),
        (HELLO, {"models": [MODEL | {"voices": []}]}),
        (HELLO, {"models": [MODEL | {"voices": [1]}]}),
        (HELLO, {"models": [MODEL | {"voices": "heart"}]}),
        (HELLO, {"models": [MODEL | {"max_segment_characters": 15}]}),
        (HELLO, {"models": [MODEL | {"max_segment_characters": 8193}]}),
        (STATUS, {"in_flight": -1}),
        (STATUS, {"steps": -1}),
        (STATUS, {"slots": 0}),
        (STATUS, {"state": None}),
        (STATUS, {"gpus": {"device": "cuda:0"}}),
        (STATUS, {"gpus": [1]}),
        (STATUS, {"gpus": [GPU] * 17}),
        (STATUS, {"gpus": [{"state": "ok"}]}),
        (STATUS, {"gpus": [GPU | {"state": "hot"}]}),
        (STATUS, {"gpus": [GPU | {"power_watts": "many"}]}),
        (STATUS, {"gpus": [GPU | {"power_watts": 10**400}]}),
        (STATUS, {"gpus": [GPU | {"memory_used_bytes": -1}]}),
        (STATUS, {"gpus": [GPU | {"throttled_by": 7}]}),
        (WELCOME, {"status_interval_seconds": 0}),
        (WELCOME, {"status_interval_seconds": -1}),
        (WELCOME, {"status_interval_seconds": 61}),
        (WELCOME, {"status_interval_seconds": float("nan")}),
        (WELCOME, {"status_interval_seconds": "often"}),
        (ORDER, {"command": "dance"}),
    ],
)
def test_an_impossible_value_is_refused(body: dict[str, Any], change: dict[str, Any]) -> None:
    parse(json.dumps(body))
    with pytest.raises(LinkError, match=f"bad {body['type']}"):
        parse(json.dumps(body | change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", '"hello"', "[" * 100_000])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(LinkError):
        parse(text)


@pytest.mark.parametrize("body", [{}, {"type": None}, {"type": "farewell"}, {"type": ["hello"]}])
def test_a_message_of_an_unknown_type_is_nothing(body: dict[str, Any]) -> None:
    assert parse(json.dumps(body)) is None


@pytest.mark.parametrize("body", ALL)
def test_an_unknown_field_is_ignored(body: dict[str, Any]) -> None:
    assert parse(json.dumps(body | {"mood": "good"})) == parse(json.dumps(body))


def test_a_gpu_figure_that_is_no_number_is_left_out() -> None:
    figures = {"power_watts": float("nan"), "fan_ratio": float("inf"), "temperature_celsius": 60, "mood": "good"}
    status = parse(json.dumps(STATUS | {"gpus": [GPU | figures]}))
    assert isinstance(status, Status)
    assert status.gpus == (Gpu("cuda:0", GpuState.OK, temperature_celsius=60.0),)


def test_a_reason_to_throttle_that_is_not_known_is_left_out() -> None:
    status = parse(json.dumps(STATUS | {"gpus": [GPU | {"throttled_by": ["boredom", "power_cap"]}]}))
    assert isinstance(status, Status)
    assert status.gpus[0].throttled_by == ("power_cap",)


def test_what_only_people_read_is_shortened_not_refused() -> None:
    status = parse(json.dumps(STATUS | {"detail": "x" * 10_000}))
    assert isinstance(status, Status)
    assert status.detail == "x" * 500
    hello = parse(json.dumps(HELLO | {"device": "d" * 10_000}))
    assert isinstance(hello, Hello)
    assert hello.device == "d" * 64


def test_the_first_voice_is_the_default() -> None:
    hello = parse(json.dumps(HELLO | {"models": [MODEL | {"voices": ["b", "a"]}]}))
    assert isinstance(hello, Hello)
    assert hello.models[0].default_voice == "b"


def test_half_of_a_surrogate_pair_breaks_the_protocol():
    with pytest.raises(LinkError):
        parse('{"type": "status", "state": "ready", "in_flight": 0, "steps": 0, "slots": 1, "detail": "\\ud800"}')
