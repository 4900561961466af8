import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.journey import Problem, ProblemKind
from bench.receiver import (
    CompressedReceiver,
    FrameReceiver,
    PcmReceiver,
    ReceiveError,
    Receiver,
    SseReceiver,
    WavReceiver,
    error_code,
)
from tests.fakes.speech_server import Events, Frames, wav_header
from wire.frames import FrameType, encode_frame

PCM = bytes(range(256)) * 20
EVENTS, FRAMES = Events("pcm"), Frames()
FRAMED = FRAMES.opening + FRAMES.wrap(PCM[:2000]) + FRAMES.wrap(PCM[2000:]) + FRAMES.closing
EVENTED = EVENTS.opening + EVENTS.wrap(PCM[:2001]) + EVENTS.wrap(PCM[2001:]) + EVENTS.closing

WHOLE: dict[str, tuple[type[Receiver] | None, bytes]] = {
    "pcm": (None, PCM),
    "wav": (WavReceiver, wav_header() + PCM),
    "frames": (FrameReceiver, FRAMED),
    "sse": (None, EVENTED),
}


def new(name: str) -> Receiver:
    match name:
        case "pcm":
            return PcmReceiver(24_000)
        case "wav":
            return WavReceiver()
        case "frames":
            return FrameReceiver()
        case _:
            return SseReceiver(PcmReceiver(24_000))


@given(st.sampled_from(sorted(WHOLE)), st.lists(st.integers(0, 8000), max_size=12))
def test_the_audio_is_found_however_the_network_cuts_the_answer(name: str, cuts: list[int]) -> None:
    data, receiver = WHOLE[name][1], new(name)
    borders = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    sizes = [receiver.feed(data[start:end]) for start, end in pairwise(borders)]
    receiver.finish()
    assert sum(sizes) == len(PCM)
    assert receiver.bytes_per_second == 48_000


@pytest.mark.parametrize("name", ["frames", "sse", "wav"])
@given(share=st.floats(0, 0.999))
def test_an_answer_without_its_end_is_truncated(name: str, share: float) -> None:
    data = wav_header(len(PCM)) + PCM if name == "wav" else WHOLE[name][1].rstrip()
    receiver = new(name)
    receiver.feed(data[: int(share * len(data))])
    with pytest.raises(ReceiveError) as caught:
        receiver.finish()
    assert caught.value.problem.kind is ProblemKind.TRUNCATED


@pytest.mark.parametrize("receiver", [PcmReceiver(24_000), WavReceiver()])
def test_half_a_sample_is_truncated(receiver: Receiver) -> None:
    receiver.feed(wav_header() + b"\0\0\0")
    with pytest.raises(ReceiveError, match="half_a_sample"):
        receiver.finish()


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF - 36])
def test_a_stream_announces_no_length(size: int) -> None:
    receiver = WavReceiver()
    receiver.feed(wav_header(size) + PCM)
    receiver.finish()


def test_a_wav_header_may_have_more_chunks() -> None:
    receiver = WavReceiver()
    header = wav_header()
    assert receiver.feed(header[:36] + b"LIST\x04\0\0\0abcd" + header[36:] + b"\0\0") == 2


@pytest.mark.parametrize(
    ("receiver", "data", "problem"),
    [
        (WavReceiver(), b"ID3" + bytes(60), Problem(ProblemKind.MALFORMED, code="not_wav")),
        (WavReceiver(), wav_header()[:36] + bytes(5000), Problem(ProblemKind.MALFORMED, code="wav_without_data")),
        (
            FrameReceiver(),
            encode_frame(FrameType.AUDIO, b"ab"),
            Problem(ProblemKind.MALFORMED, code="audio_before_meta"),
        ),
        (FrameReceiver(), encode_frame(FrameType.META, {}), Problem(ProblemKind.MALFORMED, code="sample_rate")),
        (FrameReceiver(), encode_frame(FrameType.META, b"?"), Problem(ProblemKind.MALFORMED, code="frame")),
        (FrameReceiver(), b"A\xff\xff\xff\xff", Problem(ProblemKind.MALFORMED, code="frame")),
        (FrameReceiver(), FRAMES.failure(), Problem(ProblemKind.FAILED, code="segment_failed")),
        (SseReceiver(PcmReceiver(1)), EVENTS.failure(), Problem(ProblemKind.FAILED, code="worker_failed")),
        (SseReceiver(PcmReceiver(1)), b"data: {\n", Problem(ProblemKind.MALFORMED, code="event")),
        (SseReceiver(PcmReceiver(1)), b"data: []\n", Problem(ProblemKind.MALFORMED, code="event")),
        (
            SseReceiver(PcmReceiver(1)),
            b'data: {"type":"speech.audio.delta","audio":"*"}\n',
            Problem(ProblemKind.MALFORMED, code="event"),
        ),
    ],
)
def test_what_is_wrong_has_a_kind_and_a_code(receiver: Receiver, data: bytes, problem: Problem) -> None:
    with pytest.raises(ReceiveError) as caught:
        receiver.feed(data)
    assert caught.value.problem == problem


def test_events_of_other_kinds_are_passed_over_and_done_has_two_spellings() -> None:
    receiver = SseReceiver(PcmReceiver(24_000))
    assert receiver.feed(b'data: {"type":"speech.audio.info"}\r\n\r\nid: 4\n\ndata: [DONE]\n\n') == 0
    receiver.finish()


def test_a_compressed_answer_is_kept_only_when_it_is_to_be_decoded() -> None:
    for keep, kept in ((True, b"abcdef"), (False, b"")):
        receiver = CompressedReceiver(keep=keep)
        assert receiver.feed(b"abc") + receiver.feed(b"def") == 6
        receiver.finish()
        assert receiver.recording == kept
        assert receiver.bytes_per_second is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"error": {"code": "overloaded", "type": "x"}}, "overloaded"),
        ({"error": {"code": None, "type": "server_error"}}, "server_error"),
        ({"error": "text"}, ""),
        (["error"], ""),
        (None, ""),
    ],
)
def test_an_error_has_a_code_if_it_says_one(body: object, code: str) -> None:
    assert error_code(json.loads(json.dumps(body))) == code
