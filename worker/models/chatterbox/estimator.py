"""Upstream's estimator for several utterances at once: where the flow goes from where they are.

Upstream's modules do the arithmetic, in upstream's order (decoder.py). Rows are padded on their right and masked, and
no mask is built by asking the device anything: upstream asks 144 times an utterance, which on a GPU is a wait each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.models.chatterbox.devices import compiled
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
        self._kernels = kernels_of(next(self._estimator.parameters()))

    @property
    def has_kernels(self) -> bool:
        """It computes by kernels of its own."""
        return self._kernels is not None

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
        attended = self._attending(frames, is_there, x.dtype)
        x = torch.cat([x, guide, speaker[:, :, None].expand(-1, -1, x.shape[2]), heard], dim=1)
        skipped = []
        for resnet, transformers, downsample in estimator.down_blocks:
            x = attended(resnet(x, mask, time), transformers)
            skipped.append(x)
            x = downsample(x * mask)
        for resnet, transformers in estimator.mid_blocks:
            x = attended(resnet(x, mask, time), transformers)
        for resnet, transformers, upsample in estimator.up_blocks:
            x = attended(resnet(torch.cat([x, skipped.pop()], dim=1), mask, time), transformers)
            x = upsample(x * mask)
        return estimator.final_proj(estimator.final_block(x, mask) * mask) * mask

    def _attending(self, frames: Tensor, is_there: Tensor, dtype: Any) -> Callable[[Tensor, Any], Tensor]:
        """Return what runs transformer blocks over (rows, channels, n)."""
        chunk = self._chunk and self._chunk * FRAMES_A_TOKEN
        if self._kernels is not None:
            return functools.partial(_attended_by_kernels, self._kernels, frames, chunk)
        seen = in_blocks(is_there, chunk)
        # One for all heads; upstream copies it for each.
        bias = torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, _BLIND)[:, None]
        return functools.partial(_attended, bias)


def kernels_of(weight: Tensor) -> Any:
    """Return the kernels for such weights, where they are of use and work; else None."""
    if not weight.is_cuda or weight.dtype != torch.bfloat16:
        return None

    def tried() -> Any:
        from worker.models.chatterbox import estimator_kernels as kernels

        x = torch.zeros(1, 64, 64, dtype=weight.dtype, device=weight.device)
        kernels.attend(x, x, x, torch.ones(1, dtype=torch.int64, device=weight.device), 1, None)
        kernels.join(x, x.clone(), torch.nn.LayerNorm(64, dtype=weight.dtype, device=weight.device))
        return kernels

    return compiled(tried, weight.device, "the flow")


def _attended(bias: Tensor, x: Tensor, transformers: Any) -> Tensor:
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


def _attended_by_kernels(kernels: Any, frames: Tensor, chunk: int | None, x: Tensor, transformers: Any) -> Tensor:
    x = x.transpose(1, 2).contiguous()
    heard = transformers[0].norm1(x)
    for number, block in enumerate(transformers, start=1):
        attention = block.attn1
        query, key, value = attention.to_q(heard), attention.to_k(heard), attention.to_v(heard)
        found = kernels.attend(query, key, value, frames, attention.heads, chunk)
        heard = block.ff(kernels.join(x, attention.to_out[0](found), block.norm3))
        if number < len(transformers):
            heard = kernels.join(x, heard, transformers[number].norm1)
    return (x + heard).transpose(1, 2).contiguous()
