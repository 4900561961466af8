"""Upstream's encoder for several utterances at once: what the flow needs to know of tokens that are there.

Upstream's modules do the arithmetic, in upstream's order. Lengths differ, so that rows are padded on their right and
masked; and nothing waits for the device, so that all of it can be recorded as one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.models.chatterbox import noise
from worker.models.chatterbox.family import FRAMES_A_TOKEN
from worker.models.chatterbox.masks import filled, in_blocks

MELS = 80


class Encoder:
    """A function of tensors. It changes nothing."""

    def __init__(self, flow: Any, chunk: int | None) -> None:
        self._flow = flow
        self._chunk = chunk
        self.embedding_size = flow.spk_embed_affine_layer.in_features

    def __call__(self, ids: Tensor, embedding: Tensor, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return guide (rows, 80, frames), speaker (rows, 80) and the noise that the solver begins with, as the guide.

        `ids` is (rows, tokens), each row `lengths` long, the voice's own tokens in front; `embedding` is the voice's.
        """
        flow = self._flow
        guide = flow.encoder_proj(self._hidden(flow.input_embedding(ids), lengths)).transpose(1, 2)
        speaker = flow.spk_embed_affine_layer(F.normalize(embedding, dim=1))
        place = torch.arange(guide.shape[2], device=ids.device)[None, None] * MELS
        place = place + torch.arange(MELS, device=ids.device)[None, :, None]
        return guide, speaker, noise.normal(seeds[:, None, None], noise.Stream.FLOW, place)

    def _hidden(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """Return what the encoder makes of embedded tokens (rows, n, 512), at two frames a token."""
        encoder = self._flow.encoder
        mask = filled(lengths, embedded.shape[1])
        hidden, positions, _ = encoder.embed(embedded, mask)
        # This convolution looks ahead, over the end of a row that is shorter than the longest. There it must find
        # what it finds behind the end of a row that is alone: nothing.
        hidden = encoder.pre_lookahead_layer(hidden * mask.transpose(1, 2))
        hidden = encoder.forward_layers(hidden, in_blocks(mask, self._chunk), positions, mask)
        hidden, _ = encoder.up_layer(hidden.transpose(1, 2).contiguous(), torch.empty(0))
        mask = mask.repeat_interleave(FRAMES_A_TOKEN, dim=2)
        hidden, positions, _ = encoder.up_embed(hidden.transpose(1, 2).contiguous(), mask)
        chunk = self._chunk and self._chunk * FRAMES_A_TOKEN
        hidden = encoder.forward_up_layers(hidden, in_blocks(mask, chunk), positions, mask)
        return encoder.after_norm(hidden)
