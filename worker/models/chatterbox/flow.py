"""The flow: from speech tokens to mel frames, for several utterances at once, each at its own step of the solver.

Upstream's modules do the arithmetic, in upstream's order. What is ours is the way through them: voices and lengths
differ, so that rows are padded on their right and masked, and no mask is built by asking the device anything
(upstream asks 144 times an utterance, which on a GPU is a wait each time). The noise is a function of the request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.models.chatterbox import noise
from worker.models.chatterbox.conditionals import Voice
from worker.models.chatterbox.family import FRAMES_A_TOKEN, Family
from worker.models.chatterbox.graphs import FunctionGraphs

LOOK_AHEAD_TOKENS = 3  # the encoder's; upstream's pre_lookahead_len
_MELS = 80
_BLIND = -1.0e10  # what upstream adds to the score of a position that must not be heard
_BUCKET_FRAMES = 128
# The encoder keeps several squares of its length for each row. Together no more than the longest one needs alone:
# ten seconds of a recording and forty of speech.
_MOST_SQUARES = (50 * FRAMES_A_TOKEN * 25) ** 2


@dataclass(frozen=True, slots=True)
class Score:
    """What is to be rendered. Unless it is the whole, the last three tokens are only looked at."""

    voice: Voice
    tokens: Sequence[int]
    seed: int
    is_whole: bool

    @property
    def prompt_frames(self) -> int:
        return self.voice.prompt_token.shape[1] * FRAMES_A_TOKEN

    @property
    def frames(self) -> int:
        """Mel frames, those of the voice's own recording in front."""
        tokens = len(self.tokens) - (0 if self.is_whole else LOOK_AHEAD_TOKENS)
        return self.prompt_frames + tokens * FRAMES_A_TOKEN


@dataclass(slots=True)
class FlowRun:
    """One score on its way from noise to mel. `x`, `guide` and `heard` are (80, frames), `speaker` is (80,)."""

    score: Score
    guide: Tensor
    heard: Tensor
    speaker: Tensor
    x: Tensor
    step: int = 0

    def mel(self) -> Tensor:
        """Return what was made, (1, 80, frames) without the recording's."""
        return self.x[None, :, self.score.prompt_frames :].clone()


class Flow:
    """The encoder and the solver. One thread. `chunk` is how many tokens may be looked at at once; None: all."""

    def __init__(self, s3gen: Any, family: Family, chunk: int | None, steps: int | None = None) -> None:
        self._flow = s3gen.flow
        assert len(self._flow.decoder.estimator.down_blocks) == 1, "the masks know of one length only"
        self._device = s3gen.device
        self._chunk = chunk
        self._is_distilled = family.is_turbo
        self.steps = steps or family.flow_steps
        self._times = _times(self.steps, is_even=family.is_turbo)
        self._is_bucketed = self._device.type == "cuda"
        self._slope = FunctionGraphs(self._device)

    @torch.inference_mode()
    def begin(self, scores: Sequence[Score]) -> list[FlowRun]:
        """Read the tokens of all; what `step` needs of them is ready."""
        return [run for group in _groups(scores) for run in self._encode(group)]

    @torch.inference_mode()
    def step(self, runs: Sequence[FlowRun]) -> None:
        """Take one step of the solver with each, wherever it is."""
        estimator = self._flow.decoder.estimator
        rows, frames = self._bucket(len(runs), max(run.score.frames for run in runs))
        now, then = (self._instants(runs, rows, ahead) for ahead in (0, 1))
        # With guidance each utterance has a second row, that is blind to what it should say.
        twice = 1 if self._is_distilled else 2
        inputs = {
            "x": _padded([run.x for run in runs], rows, frames).repeat(twice, 1, 1),
            "mu": _guided(_padded([run.guide for run in runs], rows, frames), twice),
            "cond": _guided(_padded([run.heard for run in runs], rows, frames), twice),
            "spks": _guided(_padded([run.speaker[:, None] for run in runs], rows, 1), twice),
            "t": now.repeat(twice),
            "r": then.repeat(twice),
        }
        inputs = {name: tensor.to(estimator.dtype) for name, tensor in inputs.items()}
        lengths = [run.score.frames for run in runs] + [1] * (rows - len(runs))
        inputs["mask"] = self._mask(lengths, frames).to(estimator.dtype).repeat(twice, 1, 1)
        slope = self._slope(self._estimate, **inputs).float()
        if twice == 2:
            rate = self._flow.decoder.inference_cfg_rate
            slope = (1.0 + rate) * slope[:rows] - rate * slope[rows:]
        for run, pull, stride in zip(runs, slope, then - now, strict=False):
            run.x = run.x + stride * pull[:, : run.score.frames]
            run.step += 1

    def is_done(self, run: FlowRun) -> bool:
        return run.step == self.steps

    def _encode(self, scores: Sequence[Score]) -> Iterator[FlowRun]:
        flow, device = self._flow, self._device
        lengths = [score.voice.prompt_token.shape[1] + len(score.tokens) for score in scores]
        ids = torch.zeros(len(scores), max(lengths), dtype=torch.int64, device=device)
        for row, score in zip(ids, scores, strict=True):
            _held_for_this_stream(score.voice)
            prompt = score.voice.prompt_token[0]
            row[: len(prompt)] = prompt
            row[len(prompt) : len(prompt) + len(score.tokens)] = torch.tensor(score.tokens, device=device)
        guides = flow.encoder_proj(self._hidden(flow.input_embedding(ids), lengths)).transpose(1, 2)
        speakers = torch.cat([score.voice.embedding for score in scores])
        speakers = flow.spk_embed_affine_layer(F.normalize(speakers, dim=1))
        for score, guide, speaker in zip(scores, guides, speakers, strict=True):
            guide = guide[:, : score.frames].clone()
            heard = torch.zeros_like(guide)
            heard[:, : score.prompt_frames] = score.voice.prompt_feat[0].T
            yield FlowRun(score, guide, heard, speaker, self._noise(score))

    def _hidden(self, embedded: Tensor, lengths: list[int]) -> Tensor:
        """Return what the encoder makes of embedded tokens (rows, n, 512), at two frames a token."""
        encoder = self._flow.encoder
        mask = self._mask(lengths, embedded.shape[1])
        hidden, positions, _ = encoder.embed(embedded, mask)
        # This convolution looks ahead, over the end of a row that is shorter than the longest. There it must find
        # what it finds behind the end of a row that is alone: nothing.
        hidden = encoder.pre_lookahead_layer(hidden * mask.transpose(1, 2))
        hidden = encoder.forward_layers(hidden, self._blocks(mask, self._chunk), positions, mask)
        hidden, _ = encoder.up_layer(hidden.transpose(1, 2).contiguous(), torch.empty(0))
        mask = mask.repeat_interleave(FRAMES_A_TOKEN, dim=2)
        hidden, positions, _ = encoder.up_embed(hidden.transpose(1, 2).contiguous(), mask)
        chunk = self._chunk and self._chunk * FRAMES_A_TOKEN
        hidden = encoder.forward_up_layers(hidden, self._blocks(mask, chunk), positions, mask)
        return encoder.after_norm(hidden)

    def _noise(self, score: Score) -> Tensor:
        index = torch.arange(score.frames, device=self._device)[None, :] * _MELS
        index = index + torch.arange(_MELS, device=self._device)[:, None]
        return noise.normal(score.seed, noise.Stream.FLOW, index)

    def _bucket(self, rows: int, frames: int) -> tuple[int, int]:
        """Return the shape that is computed: on CUDA one of few, each of which is recorded and tuned once."""
        if not self._is_bucketed:
            return rows, frames
        return 1 << (rows - 1).bit_length(), -(-frames // _BUCKET_FRAMES) * _BUCKET_FRAMES

    def _instants(self, runs: Sequence[FlowRun], rows: int, ahead: int) -> Tensor:
        times = [self._times[run.step + ahead] for run in runs] + [self._times[ahead]] * (rows - len(runs))
        return torch.tensor(times, device=self._device)

    def _mask(self, lengths: list[int], width: int) -> Tensor:
        """Return (rows, 1, width), true where a row has something."""
        ends = torch.tensor(lengths, device=self._device)[:, None, None]
        return torch.arange(width, device=self._device)[None, None, :] < ends

    @staticmethod
    def _blocks(mask: Tensor, block: int | None) -> Tensor:
        """Return what each position may look at: all of its row, or all up to the end of its own block."""
        if not block:
            return mask
        position = torch.arange(mask.shape[2], device=mask.device)
        ends = (torch.div(position, block, rounding_mode="floor") + 1) * block
        return mask & (position[None, :] < ends[:, None])[None]

    def _estimate(
        self, x: Tensor, mu: Tensor, cond: Tensor, spks: Tensor, t: Tensor, r: Tensor, mask: Tensor
    ) -> Tensor:
        """Go through upstream's estimator as its own `forward` does (decoder.py), with masks that are made once."""
        estimator = self._flow.decoder.estimator
        time = estimator.time_mlp(estimator.time_embeddings(t).to(t.dtype))
        if self._is_distilled:
            end = estimator.time_mlp(estimator.time_embeddings(r).to(t.dtype))
            time = estimator.time_embed_mixer(torch.cat([time, end], dim=1))
        seen = self._blocks(mask.bool(), self._chunk and self._chunk * FRAMES_A_TOKEN)
        bias = torch.zeros_like(seen, dtype=x.dtype).masked_fill(~seen, _BLIND)[:, None]
        x = torch.cat([x, mu, spks.expand(-1, -1, x.shape[2]), cond], dim=1)
        skipped = []
        for resnet, transformers, downsample in estimator.down_blocks:
            x = _attended(resnet(x, mask, time), transformers, bias)
            skipped.append(x)
            x = downsample(x * mask)
        for resnet, transformers in estimator.mid_blocks:
            x = _attended(resnet(x, mask, time), transformers, bias)
        for resnet, transformers, upsample in estimator.up_blocks:
            x = _attended(resnet(torch.cat([x, skipped.pop()], dim=1), mask, time), transformers, bias)
            x = upsample(x * mask)
        return estimator.final_proj(estimator.final_block(x, mask) * mask) * mask


def _attended(x: Tensor, transformers: Any, bias: Tensor) -> Tensor:
    """Run transformer blocks over (rows, channels, n). The bias is one for all heads; upstream copies it for each."""
    x = x.transpose(1, 2)
    for block in transformers:
        attention = block.attn1
        heard = block.norm1(x)
        query, key, value = (
            linear(heard).unflatten(2, (attention.heads, -1)).transpose(1, 2)
            for linear in (attention.to_q, attention.to_k, attention.to_v)
        )
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        x = attention.to_out[0](found.transpose(1, 2).flatten(2)) + x
        x = block.ff(block.norm3(x)) + x
    return x.transpose(1, 2).contiguous()


def _held_for_this_stream(voice: Voice) -> None:
    """Have the voice's memory stay its own until this stream has read it, though nobody may hold the voice by then."""
    if voice.prompt_token.is_cuda:
        for tensor in (voice.prompt_token, voice.prompt_feat, voice.embedding):
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


def _times(steps: int, *, is_even: bool) -> list[float]:
    """Return the instants of the solver: flow_matching.py:231, a cosine unless the model has learned even ones."""
    times = torch.linspace(0, 1, steps + 1)
    if not is_even:
        times = 1 - torch.cos(times * 0.5 * torch.pi)
    return [float(time) for time in times]


def _groups(scores: Sequence[Score]) -> Iterator[list[Score]]:
    """Cut into what the encoder may read at once."""
    group: list[Score] = []
    longest = 0
    for score in scores:
        longest = max(longest, score.frames)
        if group and (len(group) + 1) * longest**2 > _MOST_SQUARES:
            yield group
            group, longest = [], score.frames
        group.append(score)
    if group:
        yield group


def _padded(tensors: Sequence[Tensor], rows: int, width: int) -> Tensor:
    """Stack (80, n) on top of each other, with zeros behind each and below all."""
    if len(tensors) == rows and all(tensor.shape[1] == width for tensor in tensors):
        return torch.stack(list(tensors))
    stacked = tensors[0].new_zeros(rows, tensors[0].shape[0], width)
    for row, tensor in zip(stacked, tensors, strict=False):
        row[:, : tensor.shape[1]] = tensor
    return stacked


def _guided(tensor: Tensor, twice: int) -> Tensor:
    return tensor if twice == 1 else torch.cat([tensor, torch.zeros_like(tensor)])
