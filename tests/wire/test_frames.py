"""Frames survive whatever a network does to them, and broken ones are noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.frames import MAX_PAYLOAD_BYTES, Frame, FrameError, FrameReader, FrameType, encode_frame
from wire.segment import MAX_CHECKPOINT_BYTES

PCM = st.binary(max_size=400).map(lambda data: data[: len(data) // 2 * 2])
FRAMES = st.lists(
    st.one_of(
        st.builds(Frame, st.just(FrameType.AUDIO), PCM),
        st.builds(Frame, st.sampled_from([t for t in FrameType if t is not FrameType.AUDIO]), st.binary(max_size=400)),
    ),
    max_size=8,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted(cut % (len(data) + 1) for cut in cuts)
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@given(FRAMES, st.lists(st.integers(min_value=0, max_value=10_000), max_size=20))
def test_frames_survive_any_cutting(frames: list[Frame], cuts: list[int]) -> None:
    reader = FrameReader()
    data = b"".join(encode_frame(frame.type, frame.payload) for frame in frames)
    assert [frame for piece in pieces(data, cuts) for frame in reader.feed(piece)] == frames
    assert reader.is_empty


@given(FRAMES.filter(bool))
def test_frames_survive_arriving_byte_by_byte(frames: list[Frame]) -> None:
    reader = FrameReader()
    data = b"".join(encode_frame(frame.type, frame.payload) for frame in frames)
    assert [frame for byte in data for frame in reader.feed(bytes([byte]))] == frames


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_no_bytes_raise_anything_but_a_frame_error(received: list[bytes]) -> None:
    reader = FrameReader()
    try:
        for data in received:
            for frame in reader.feed(data):
                frame.json()
    except FrameError:
        pass


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_a_json_payload_comes_back_as_it_was(value: dict[str, object]) -> None:
    (frame,) = FrameReader().feed(encode_frame(FrameType.META, value))
    assert frame.json() == value


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b"1", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000],
)
def test_a_payload_that_is_no_object_is_a_frame_error(payload: bytes) -> None:
    with pytest.raises(FrameError, match="META"):
        Frame(FrameType.META, payload).json()


def test_frames_of_an_unknown_type_are_skipped() -> None:
    data = encode_frame(FrameType.META, b"{}") + b"Z\x00\x00\x00\x03abc" + encode_frame(FrameType.DONE, b"{}")
    assert [frame.type for frame in FrameReader().feed(data)] == [FrameType.META, FrameType.DONE]


def test_a_frame_that_announces_too_much_is_refused_before_it_has_come() -> None:
    with pytest.raises(FrameError, match="more than"):
        list(FrameReader().feed(b"A" + (MAX_PAYLOAD_BYTES + 1).to_bytes(4, "big")))


def test_a_payload_of_the_longest_kind_passes() -> None:
    (frame,) = FrameReader().feed(encode_frame(FrameType.AUDIO, bytes(MAX_PAYLOAD_BYTES)))
    assert len(frame.payload) == MAX_PAYLOAD_BYTES


def test_a_payload_that_is_too_long_is_never_sent() -> None:
    with pytest.raises(FrameError, match="exceeds"):
        encode_frame(FrameType.CHECKPOINT, bytes(MAX_PAYLOAD_BYTES + 1))


def test_half_a_sample_is_refused() -> None:
    with pytest.raises(FrameError, match="pairs of bytes"):
        list(FrameReader().feed(encode_frame(FrameType.AUDIO, b"\x00\x01\x02")))


def test_a_frame_that_is_cut_off_leaves_the_reader_waiting() -> None:
    reader = FrameReader()
    assert list(reader.feed(encode_frame(FrameType.AUDIO, b"\x00\x01")[:-1])) == []
    assert not reader.is_empty


def test_a_reader_that_is_left_in_the_middle_goes_on_where_it_was() -> None:
    reader = FrameReader()
    data = encode_frame(FrameType.META, b"{}") + encode_frame(FrameType.DONE, b"{}")
    assert next(reader.feed(data)).type is FrameType.META
    assert [frame.type for frame in reader.feed(b"")] == [FrameType.DONE]


def test_a_checkpoint_longer_than_a_resume_may_carry_is_refused_on_both_sides():
    with pytest.raises(FrameError):
        encode_frame(FrameType.CHECKPOINT, bytes(MAX_CHECKPOINT_BYTES + 1))
    with pytest.raises(FrameError):
        list(FrameReader().feed(b"C" + (MAX_CHECKPOINT_BYTES + 1).to_bytes(4, "big")))
    list(FrameReader().feed(encode_frame(FrameType.CHECKPOINT, bytes(MAX_CHECKPOINT_BYTES))))
