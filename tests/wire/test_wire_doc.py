"""docs/wire.md says what wire/ does: every name, limit and default is on the page, every example on it is valid."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from wire import frames, gpu, headers, link, segment
from wire.errors import TRAITS, ErrorCode, TtsError
from wire.frames import FrameReader, FrameType
from wire.gpu import THROTTLE_REASONS, Gpu, GpuState
from wire.link import Command, Hello, ModelInfo, Order, Refused, Status, Welcome, WorkerState
from wire.segment import PARAMETERS, SPEED, Resume, SegmentRequest

PAGE = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()
MESSAGES: tuple[type[Any], ...] = (Hello, Status, Welcome, Refused, Order)


def section(title: str) -> str:
    """Return the text under the first heading that contains `title`, up to the next heading."""
    _, _, rest = PAGE.partition(next(line for line in PAGE.splitlines() if line.startswith("#") and title in line))
    return re.split(r"^#", rest, maxsplit=1, flags=re.MULTILINE)[0]


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def example(title: str, marker: str) -> dict[str, Any]:
    return next(body for body in map(json.loads, fenced("json")) if marker in str(body) and title in str(body))


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_code_has_its_row(code: ErrorCode) -> None:
    status, type_, retryable = TRAITS[code]
    assert f"| `{code}` | {status} | `{type_}` | {'yes' if retryable else 'no'} |" in section("Errors")


def test_no_error_code_on_the_page_is_gone_from_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| \d{3} \|", section("Errors"), re.MULTILINE)
    assert sorted(rows) == sorted(ErrorCode)


@pytest.mark.parametrize("message", MESSAGES)
def test_every_field_of_a_message_is_in_its_section(message: type[Any]) -> None:
    text = section(f"`{message.TYPE}`")
    for field in fields(message):
        assert f"`{field.name}`" in text


def test_fields_are_called_required_exactly_when_they_are() -> None:
    for message in (Hello, Status):
        for field in fields(message):
            is_required = field.default is MISSING and field.default_factory is MISSING
            assert (f"| `{field.name}` | required |" in section(f"`{message.TYPE}`")) == is_required, field.name


@pytest.mark.parametrize("names", [[f.name for f in fields(ModelInfo)], list(WorkerState), list(Command)])
def test_models_states_and_commands_are_complete(names: list[str]) -> None:
    for name in names:
        assert f"`{name}`" in PAGE


@pytest.mark.parametrize("names", [[f.name for f in fields(Gpu)], list(GpuState), list(THROTTLE_REASONS)])
def test_fields_and_words_of_a_gpu_are_complete(names: list[str]) -> None:
    for name in names:
        assert f"`{name}`" in section("`status`")


def test_every_field_of_a_segment_is_in_its_section() -> None:
    text = section("Data call")
    for name in [f.name for f in fields(SegmentRequest)] + [f.name for f in fields(Resume)]:
        assert f"`{name}`" in text


def test_every_parameter_has_its_range() -> None:
    text = section("Data call")
    for name, range_ in PARAMETERS.items():
        assert f"`{name}` {range_.low:g} to {range_.high:g}" in text
    assert f"| `speed` | 1.0 | {SPEED.low:g} to {SPEED.high:g} |" in text


@pytest.mark.parametrize("type_", list(FrameType))
def test_every_frame_type_has_its_row(type_: FrameType) -> None:
    assert f"| `{chr(type_)}` {type_:02x} | {type_.name} |" in section("Frames")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_MESSAGE_BYTES", link.MAX_MESSAGE_BYTES),
        ("STATUS_INTERVAL_SECONDS", link.STATUS_INTERVAL_SECONDS),
        ("SILENCE_SECONDS", link.SILENCE_SECONDS),
        ("PROTOCOL_VERSION", link.PROTOCOL_VERSION),
        ("MAX_PAYLOAD_BYTES", frames.MAX_PAYLOAD_BYTES),
        ("MAX_SEGMENT_CHARACTERS", segment.MAX_SEGMENT_CHARACTERS),
        ("MAX_CHECKPOINT_BYTES", segment.MAX_CHECKPOINT_BYTES),
        ("MAX_SEED", segment.MAX_SEED),
        ("MAX_GPUS", gpu.MAX_GPUS),
    ],
)
def test_every_limit_is_on_the_page_with_its_value(name: str, value: float) -> None:
    line = next(line for line in PAGE.splitlines() if f"`{name}`" in line)
    assert re.search(rf"\b{value:.10g}\b", line)


@pytest.mark.parametrize(
    "text",
    [
        f"Protocol version **{link.PROTOCOL_VERSION}**",
        link.LINK_PATH,
        headers.SEGMENTS_PATH,
        headers.REQUEST_ID,
        headers.CLIP_PATH,
        headers.PREPARED_PATH,
    ],
)
def test_version_paths_and_headers_are_on_the_page(text: str) -> None:
    assert text in PAGE


def test_the_content_type_of_frames_is_on_the_page() -> None:
    assert headers.SEGMENT_CONTENT_TYPE in section("Data call")


def test_there_is_a_valid_example_of_every_message() -> None:
    parsed = {type(link.parse(text)) for text in fenced("json") if '"type": "' in text and '"error"' not in text}
    assert parsed == set(MESSAGES)


def test_the_examples_name_no_field_that_does_not_exist() -> None:
    for text in fenced("json"):
        body = json.loads(text)
        if message := next((m for m in MESSAGES if body.get("type") == m.TYPE), None):
            assert body.keys() <= {f.name for f in fields(message)} | {"type"}


def test_the_example_of_hello_shows_every_field() -> None:
    body = example("hello", "epoch")
    assert body.keys() == {f.name for f in fields(Hello)} | {"type"}
    assert body["models"][0].keys() == {f.name for f in fields(ModelInfo)}


def test_the_example_of_a_segment_is_read_whole() -> None:
    body = example("request_id", "delivered_samples")
    request = SegmentRequest.from_json(body)
    assert request.to_json() == body
    assert request.resume is not None
    assert json.loads(base64.b64decode(body["resume"]["checkpoint"])) == {"characters": 12}


def test_the_example_of_an_error_is_the_envelope_of_its_code() -> None:
    body = example("error", "all 4 slots")
    error = TtsError.from_envelope(body)
    assert error.code is ErrorCode.WORKER_FULL
    assert error.envelope() == body


def test_the_example_frames_are_what_they_say() -> None:
    (block,) = fenced("frames")
    for line in block.splitlines():
        bytes_, comment = re.split(r"\s{2,}(?=[MACED] )", line)
        (frame,) = FrameReader().feed(bytes.fromhex(bytes_))
        assert chr(frame.type) == comment[0]
        if frame.type in (FrameType.META, FrameType.DONE):
            assert frame.json() == json.loads(comment[2:])
    samples = bytes.fromhex("00 00 ff 7f")
    assert [int.from_bytes(samples[i : i + 2], "little", signed=True) for i in (0, 2)] == [0, 32767]
