"""What is told of recordings, and the page that plays them: without torch."""

import argparse
import base64
import io
import re
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import quality
from bench.errors import OptionError
from bench.listening import Sound, seam_decibels, wav_file
from bench.quality_page import note_of, page

RATE = 24_000


def vowel(seconds: float = 1.0) -> Sound:
    t = np.arange(int(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * 140 * t) * (1 + 0.3 * np.sin(2 * np.pi * 3 * t))).astype(np.float32)


def test_a_seam_that_nobody_hears_is_no_rougher_than_the_rest() -> None:
    found = seam_decibels(vowel(), [RATE // 2])
    assert found is not None
    assert found < 3


def test_a_click_stands_out() -> None:
    sound = vowel()
    sound[RATE // 2 :] += 0.05
    found = seam_decibels(sound, [RATE // 4, RATE // 2])
    assert found is not None
    assert found > 20
    # It is told where the seam is, not where it is not.
    elsewhere = seam_decibels(sound, [RATE // 4])
    assert elsewhere is not None
    assert elsewhere < 3


def test_without_a_seam_or_without_sound_nothing_is_told() -> None:
    assert seam_decibels(vowel(), []) is None
    assert seam_decibels(np.zeros(RATE, np.float32), [RATE // 2]) is None
    assert seam_decibels(np.zeros(0, np.float32), [1]) is None


def test_a_recording_is_a_file_that_plays() -> None:
    with wave.open(io.BytesIO(wav_file(np.array([0.0, 0.5, 2.0, -2.0], np.float32), RATE))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        assert np.frombuffer(file.readframes(4), "<i2").tolist() == [0, 16384, 32767, -32767]


def take(**changes: Any) -> dict[str, Any]:
    figures = {
        "duration_seconds": 2.0,
        "seconds": 1.0,
        "real_time_factor": 0.5,
        "similarity": 0.8,
        "seams": 0,
        "seam_decibels": None,
        "heard": "yes",
        "word_error_rate": 0.0,
    }
    return figures | changes


OPTIONS = quality.Options(Path("/"), "chatterbox", "cpu", None, ("Yes.", "No <b>."), ("chunk",), ("fp32",), 1)


def test_speakers_are_measured_by_upstream_text_by_text() -> None:
    ours = [
        take(duration_seconds=1.0, seams=3, seam_decibels=4.0, word_error_rate=0.5),
        take(duration_seconds=3.0, seams=2, seam_decibels=-1.0),
    ]
    report = quality.build_report(OPTIONS, {"upstream": [take(), take()], "ours, chunk, fp32": ours})
    summary = report["summary"]["ours, chunk, fp32"]
    assert summary["duration_to_upstream"] == {"median": 1.0, "low": 0.5, "high": 1.5}
    assert summary["word_error_rate"] == 0.25
    assert summary["seam_decibels"] == 4.0
    upstream, mine = quality.rows(report)
    assert upstream == ["upstream", "0", "4", "1.00 (1.00–1.00)", "0.80 (0.80–0.80)", "–", "0.5"]
    assert mine[0] == "ours, chunk, fp32"
    assert mine[5] == "+4.0"


def test_where_nothing_listens_no_words_are_told() -> None:
    deaf = take(word_error_rate=None, heard=None)
    report = quality.build_report(OPTIONS, {"upstream": [deaf, deaf]})
    assert report["summary"]["upstream"]["word_error_rate"] is None
    assert quality.rows(report)[0][1] == "–"
    assert "WER" not in note_of(deaf)


def test_the_page_needs_nothing_but_itself() -> None:
    files = {"upstream": [b"one", b"two"], "ours": [b"three", b"four"]}
    notes = {name: [note_of(take())] * 2 for name in files}
    html = page(quality.HEADS, [["upstream", *"123456"]], OPTIONS.texts, files, notes)
    found = re.findall(r'src="data:audio/wav;base64,([^"]+)"', html)
    assert [base64.b64decode(data) for data in found] == [b"one", b"three", b"two", b"four"]
    assert "No &lt;b&gt;." in html
    assert "<script" not in html
    assert not re.search(r'(src|href)="(?!data:)', html)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--checkpoint", "nowhere"], "--checkpoint"),
        (["--checkpoint", "/", "--clip", "nowhere.wav"], "--clip"),
        (["--checkpoint", "/", "--texts", "nowhere.txt"], "--texts"),
        (["--checkpoint", "/", "--stream", "words"], "--stream"),
        (["--checkpoint", "/", "--precision", "int8"], "--precision"),
        (["--checkpoint", "/", "--html", "nowhere/a.html"], "--html"),
    ],
)
def test_an_impossible_option_is_named(given: list[str], named: str) -> None:
    parser = argparse.ArgumentParser()
    quality.add_arguments(parser)
    with pytest.raises(OptionError, match=named):
        quality.read_options(parser.parse_args(given))


def test_a_line_longer_than_a_segment_is_refused(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.write_text("a" * 281 + "\n")
    parser = argparse.ArgumentParser()
    quality.add_arguments(parser)
    with pytest.raises(OptionError, match="281 characters"):
        quality.read_options(parser.parse_args(["--checkpoint", "/", "--texts", str(texts)]))
