"""Windows of several utterances at once give each the samples of upstream's vocoder, which hears it whole and alone."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.chatterbox import upstream
from tests.chatterbox.conftest import Models
from tests.chatterbox.rounded import Rounded
from tests.chatterbox.speaking import distance
from worker.models.chatterbox.fourier import inverse
from worker.models.chatterbox.graphs import FunctionGraphs
from worker.models.chatterbox.vocoder import MOST_ROWS, PIECE_FRAMES, SHORTEST_PIECE_FRAMES, Vocoder, VocoderRun

# Shorter than a window's context, than a window, as long as pieces, with a rest that is no piece, and many.
LENGTHS = (8, 20, 107, 131, 200, 205, 333)
_PITCH_HZ = 30.0  # low: what single precision rounds of a pitch grows with its cycles, in upstream as here


def mels() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(80, length, generator=generator) * 2 - 5 for length in LENGTHS]


def spoken(vocoder: Vocoder, runs: list[VocoderRun]) -> list[list[Tensor]]:
    """Speak all that is due of the runs together, as many at once as may be."""
    pieces: list[list[Tensor]] = [[] for _ in runs]
    while due := [number for number, run in enumerate(runs) if run.is_due][:MOST_ROWS]:
        for number, piece in zip(due, vocoder.speak([runs[number] for number in due]), strict=True):
            pieces[number].append(piece)
    return pieces


@pytest.fixture
def s3gen(loaded: Models) -> Iterator[Any]:
    """Return a model whose sound has a pitch: by chance there is none, and nobody would hear a phase that is lost."""
    held = loaded("chatterbox")._get().parts.s3gen
    bias = held.mel2wav.f0_predictor.classifier.bias
    bias += _PITCH_HZ
    yield held
    bias -= _PITCH_HZ


@pytest.mark.parametrize("graphs", [Rounded(), FunctionGraphs(torch.device("cpu"))], ids=["rounded", "as it is"])
def test_together_each_is_what_upstream_makes_of_it_alone(graphs: FunctionGraphs, s3gen: Any) -> None:
    vocoder = Vocoder(s3gen, graphs)
    runs, parts = [VocoderRun(seed) for seed in range(len(LENGTHS))], list[list[Tensor]]()
    # Half of each long one first; so they are at different places, and those that are whole are done.
    for run, mel in zip(runs, mels(), strict=True):
        is_long = mel.shape[1] > PIECE_FRAMES
        vocoder.extend(run, mel[:, : mel.shape[1] // 2] if is_long else mel, is_last=not is_long)
    parts = spoken(vocoder, runs)
    for run, mel in zip(runs, mels(), strict=True):
        vocoder.extend(run, mel, is_last=True)
    for number, mel in enumerate(mels()):
        pieces = parts[number] + spoken(vocoder, [runs[number]])[0]
        assert all(SHORTEST_PIECE_FRAMES * 480 <= len(piece) <= PIECE_FRAMES * 480 for piece in pieces)
        expected = upstream.samples(s3gen, mel, seed=number)
        assert distance(torch.cat(pieces), expected) < 1e-5, f"{LENGTHS[number]} frames"


def test_those_that_are_whole_are_at_different_places_together(s3gen: Any) -> None:
    graphs = Rounded()
    vocoder = Vocoder(s3gen, graphs)
    runs = [VocoderRun(seed) for seed in range(len(LENGTHS))]
    for run, mel in zip(runs, mels(), strict=True):
        vocoder.extend(run, mel, is_last=True)
    ahead = {number: vocoder.speak([runs[number]]) for number in (4, 6)}
    parts = spoken(vocoder, runs)
    for number, mel in enumerate(mels()):
        whole = torch.cat(ahead.get(number, []) + parts[number])
        assert distance(whole, upstream.samples(s3gen, mel, seed=number)) < 1e-5, f"{LENGTHS[number]} frames"
    rows_and_frames = {(shape[0][0], shape[0][2]) for shape in graphs.shapes}
    assert rows_and_frames <= {(rows, frames) for rows in (1, 2, 3, 4, 6, 8) for frames in (87, 137)}


@pytest.mark.parametrize(("size", "hop"), [(16, 4), (1536, 240)])
def test_the_inverse_is_torchs(size: int, hop: int) -> None:
    window = torch.hann_window(size)
    sound = torch.randn(2, 40 * hop, generator=torch.Generator().manual_seed(1))
    spectrum = torch.stft(sound, size, hop, window=window, return_complex=True)
    spectrum = spectrum * torch.randn(spectrum.shape, generator=torch.Generator().manual_seed(2))
    lengths = (41, 30)
    mask = (torch.arange(41) < torch.tensor(lengths)[:, None, None]).float()
    ours = inverse(spectrum, window, hop, mask)
    for row, length in enumerate(lengths):
        theirs = torch.istft(spectrum[row, :, :length], size, hop, window=window)
        assert distance(ours[row, : len(theirs)], theirs) < 1e-6
    assert distance(inverse(spectrum, window, hop, mask[:1])[0], ours[0]) < 1e-6
