"""Upstream's estimator for several utterances at once: where the flow goes from where they are.

Upstream's modules do the arithmetic, in upstream's order (decoder.py). Rows are padded on their right and masked, and
no mask is built by asking the device anything: upstream asks 144 times an utterance, which on a GPU is a wait each.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.models.chatterbox.family import FRAMES_A_TOKEN
from worker.models.chatterbox.masks import filled, in_blocks

_BLIND = -1.0e10  # what upstream adds to the score of a position that must not be heard


class Estimator:
    """A function of tensors. It changes nothing. `dtype` is what it computes in."""

    def __init__(self, decoder: Any, chunk: int | None, *, is_distilled: bool) -> None:
        self._estimator = decoder.estimator
        assert len(self._estimator.down_blocks) == 1, "the masks know of one length only"
        self._rate = decoder.inference_cfg_rate
        self._chunk = chunk
        self._is_distilled = is_distilled
        self.dtype = self._estimator.dtype

    def __call__(
        self, x: Tensor, guide: Tensor, heard: Tensor, speaker: Tensor, frames: Tensor, now: Tensor, then: Tensor
    ) -> Tensor:
        """Return the slope at `x` (rows, 80, n) in float32: zero from `frames` on, of which each row has its own."""
        x, now, then = (tensor.to(self.dtype) for tensor in (x, now, then))
        if self._is_distilled:
            return self._slope(x, guide, heard, speaker, frames, now, then).float()
        # With guidance each utterance has a second row, that is blind to what it should say.
        guide, heard, speaker = (torch.cat([one, torch.zeros_like(one)]) for one in (guide, heard, speaker))
        x, frames, now, then = (torch.cat([one, one]) for one in (x, frames, now, then))
        sees, blind = self._slope(x, guide, heard, speaker, frames, now, then).float().chunk(2)
        return (1.0 + self._rate) * sees - self._rate * blind

    def _slope(
        self, x: Tensor, guide: Tensor, heard: Tensor, speaker: Tensor, frames: Tensor, now: Tensor, then: Tensor
    ) -> Tensor:
        """Go through upstream's estimator as its own `forward` does, with masks that are made once."""
        estimator = self._estimator
        time = estimator.time_mlp(estimator.time_embeddings(now).to(now.dtype))
        if self._is_distilled:
            end = estimator.time_mlp(estimator.time_embeddings(then).to(then.dtype))
            time = estimator.time_embed_mixer(torch.cat([time, end], dim=1))
        is_there = filled(frames, x.shape[2])
        mask = is_there.to(x.dtype)
        seen = in_blocks(is_there, self._chunk and self._chunk * FRAMES_A_TOKEN)
        bias = torch.zeros_like(seen, dtype=x.dtype).masked_fill(~seen, _BLIND)[:, None]
        x = torch.cat([x, guide, speaker[:, :, None].expand(-1, -1, x.shape[2]), heard], dim=1)
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
    x = x.transpose(1, 2).contiguous()
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
