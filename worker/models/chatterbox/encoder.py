"""Upstream's encoder for several utterances at once: what the flow needs to know of tokens that are there.

Upstream's modules do the arithmetic, but for the attention itself. Lengths differ, so that rows are padded on their
right and masked; and nothing waits for the device, so that all of it can be recorded as one.
"""

from __future__ import annotations

from collections.abc import Iterable
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
        hidden = _through(encoder.encoders, hidden, in_blocks(mask, self._chunk), positions)
        hidden, _ = encoder.up_layer(hidden.transpose(1, 2).contiguous(), torch.empty(0))
        mask = mask.repeat_interleave(FRAMES_A_TOKEN, dim=2)
        hidden, positions, _ = encoder.up_embed(hidden.transpose(1, 2).contiguous(), mask)
        chunk = self._chunk and self._chunk * FRAMES_A_TOKEN
        hidden = _through(encoder.up_encoders, hidden, in_blocks(mask, chunk), positions)
        return encoder.after_norm(hidden)


def _through(layers: Iterable[Any], x: Tensor, sees: Tensor, positions: Tensor) -> Tensor:
    """Return what the layers make of `x` (rows, n, width); `sees` (rows, 1 or n, n) is true where one sees another."""
    for layer in layers:
        x = x + _attended(layer.self_attn, layer.norm_mha(x), sees[:, None], positions)
        x = x + layer.feed_forward(layer.norm_ff(x))
    return x


def _attended(attention: Any, x: Tensor, sees: Tensor, positions: Tensor) -> Tensor:
    """Return upstream's `RelPositionMultiHeadedAttention` of `x`: each looks at what another is and at how far off.

    The tables of scores, (rows, heads, n, n), are most of the encoder's time, and upstream makes six of them anew.
    """
    rows, n, width = x.shape
    heads = rows, n, attention.h, attention.d_k
    query, key, value = attention.linear_q(x).view(heads), attention.linear_k(x), attention.linear_v(x)
    # From n - 1 ahead to n - 1 behind; the same for all rows, so that they are multiplied as one.
    distance = attention.linear_pos(positions).view(-1, attention.h, attention.d_k)
    far = (query + attention.pos_bias_v).permute(2, 0, 1, 3).reshape(attention.h, rows * n, attention.d_k)
    far = torch.bmm(far, distance.permute(1, 2, 0) * attention.d_k**-0.5)
    # Of line i the columns from n - 1 - i on: the same numbers, read at a slant.
    line = far.stride(1)
    slanted = far.as_strided((rows, attention.h, n, n), (n * line, far.stride(0), line - 1, 1), n - 1)
    attended = F.scaled_dot_product_attention(
        (query + attention.pos_bias_u).transpose(1, 2),
        key.view(heads).transpose(1, 2),
        value.view(heads).transpose(1, 2),
        attn_mask=slanted.masked_fill(~sees, -torch.inf),
    )
    made: Tensor = attention.linear_out(attended.transpose(1, 2).reshape(rows, n, width))
    return made
