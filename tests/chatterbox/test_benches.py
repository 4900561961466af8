"""The benchmarks that need torch, on random weights: small runs of the real commands."""

import json
from pathlib import Path

import pytest
import torch

from bench.__main__ import main
from bench.chatterbox.operations import OperationCount
from tests.chatterbox.conftest import Checkpoints
from tests.chatterbox.speaking import clip, wav

# Seconds of work, on a machine that may be twenty times slower.
pytestmark = pytest.mark.timeout(1200)


def test_an_engine_contest_tells_every_figure_and_equal_tokens(tmp_path: Path) -> None:
    where = tmp_path / "engine.json"
    lengths = ["--batch", "1,3", "--tokens", "24", "--turns", "1", "--rounds", "2"]
    options = [*lengths, "--precision", "fp32", "--check", "3"]
    assert main(["engine", *options, "--json", str(where)]) == 0
    report = json.loads(where.read_text())
    assert report["equal"] == {"texts": 3, "equal": 3, "tokens": 72}
    assert report["whole"]["ours"]["3"][0]["audio_seconds"] == 2 * 3 * 24 / 25
    assert report["whole"]["upstream"][0]["audio_seconds"] == 24 / 25
    assert report["steps"]["upstream"]["waits"] == 1
    assert report["steps"]["ours"]["3"]["operations"] > 300
    for batch in ("1", "3"):
        assert report["summary"]["tokens_per_second"][batch]["median"] > 0
        assert report["summary"]["tokens_per_second"][batch]["best"] > 0
    shares = report["summary"]["audio_seconds_per_second"]["3"]["stage_shares"]
    assert {"decode", "vocode", "watermark"} <= shares.keys()


def test_what_the_host_waits_for_is_counted_and_views_are_no_work() -> None:
    numbers = torch.randn(4, 4)
    for inference in (False, True):
        with torch.inference_mode(inference), OperationCount() as count:
            numbers.transpose(0, 1).argmax()
        assert (count.operations, count.waits) == (1, 0)
        with torch.inference_mode(inference), OperationCount() as count:
            int(numbers.argmax())
        assert count.waits == 1


def test_recordings_of_both_pipelines_are_measured_and_can_be_heard(checkpoint: Checkpoints, tmp_path: Path) -> None:
    texts, where, page = tmp_path / "texts", tmp_path / "a.json", tmp_path / "a.html"
    texts.write_text("Hello there, friend.\n")
    recording = tmp_path / "voice.wav"
    recording.write_bytes(wav(clip(seconds=2.0)))
    options = ["--texts", texts, "--clip", recording, "--json", where, "--html", page]
    assert main(["quality", "--checkpoint", str(checkpoint("chatterbox")), *map(str, options)]) == 0
    report = json.loads(where.read_text())
    assert list(report["summary"]) == ["upstream", "ours, segments, fp32", "ours, chunk, fp32"]
    for name, one in report["summary"].items():
        assert one["duration_to_upstream"]["median"] == pytest.approx(1.0, abs=0.2), name
        assert -1 <= one["similarity"]["median"] <= 1
        assert one["word_error_rate"] is not None
    assert all(take["seams"] == 0 for take in report["takes"]["upstream"])
    assert page.read_text().count("<audio") == 3


@pytest.mark.e2e
def test_a_split_is_measured_beside_one_worker_and_two(tmp_path: Path) -> None:
    where = tmp_path / "split.json"
    load = ["--characters", "30", "--requests", "3", "--connections", "3", "--slots", "3", "--turns", "1"]
    assert main(["split", *load, "--json", str(where)]) == 0
    report = json.loads(where.read_text())
    one, parallel, split = (report["turns"][name][0] for name in ("one", "parallel", "split"))
    assert one["audio_seconds"] == parallel["audio_seconds"] == split["audio_seconds"] > 0
    for turn in (one, parallel, split):
        assert turn["stage_seconds"]["decode"] > 0
        assert turn["stage_seconds"]["vocode"] > 0
        assert turn["device_bytes"] > 1e8
    assert 0 <= split["overlap_ratio"] <= 1
    assert report["advice"]["choice"] in ("one", "parallel", "split")
