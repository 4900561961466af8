"""Upstream's transformers, layer by layer over upstream's own weights, with keys and values in a cache that stays.

Upstream's loop lets the library do this: it makes the cache anew every step, one position longer, and collects the
hidden states of all layers. Here the shapes are fixed and everything is written in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from worker.models.chatterbox.cache import LENGTHS, Cache
from worker.models.chatterbox.slots import Slots


class _Kind(Protocol):
    """What differs between the two transformers. Everything around the attention is upstream's modules."""

    layers: Sequence[Any]
    heads: int
    width: int  # of a head

    def enter(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return what the first layer is given for the embeddings `x` (rows, n, hidden)."""
        ...

    def turns(self, positions: Tensor) -> Any:
        """Return what `project` needs to know of the positions; the same for all layers."""
        ...

    def project(self, layer: Any, x: Tensor, turns: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of a layer, (rows, n, heads, width) each."""
        ...

    def leave(self, layer: Any, x: Tensor, attended: Tensor) -> Tensor:
        """Return what the next layer is given; `attended` is (rows, n, hidden)."""
        ...

    def finish(self, x: Tensor) -> Tensor:
        """Norm what the last layer made."""
        ...


class _Llama:
    """English and Multilingual: modeling_llama.py of transformers 5.2."""

    def __init__(self, transformer: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.layers = transformer.layers
        self.heads = transformer.config.num_attention_heads
        self.width = transformer.config.head_dim
        self._norm = transformer.norm
        positions = torch.arange(LENGTHS[-1], device=device)[None]
        cos, sin = transformer.rotary_emb(torch.zeros(1, dtype=dtype, device=device), positions)
        self._cos, self._sin = cos[0], sin[0]

    def enter(self, x: Tensor, _positions: Tensor) -> Tensor:
        return x

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self._cos[positions][:, :, None], self._sin[positions][:, :, None]

    def project(self, layer: Any, x: Tensor, turns: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        attention, x = layer.self_attn, _normed(layer.input_layernorm, x)
        shape = (*x.shape[:2], self.heads, self.width)
        query, key = attention.q_proj(x).view(shape), attention.k_proj(x).view(shape)
        return self._turned(query, *turns), self._turned(key, *turns), attention.v_proj(x).view(shape)

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-right, left), dim=-1) * sin

    def leave(self, layer: Any, x: Tensor, attended: Tensor) -> Tensor:
        x = x + layer.self_attn.o_proj(attended)
        return x + layer.mlp(_normed(layer.post_attention_layernorm, x))

    def finish(self, x: Tensor) -> Tensor:
        return _normed(self._norm, x)


def _normed(norm: Any, x: Tensor) -> Tensor:
    """Return what a `LlamaRMSNorm` makes of `x`, in one operation of its six; in float32 bit for bit."""
    return rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


class _Gpt2:
    """Turbo: modeling_gpt2.py of transformers 5.2."""

    def __init__(self, transformer: Any) -> None:
        self.layers = transformer.h
        self.heads = transformer.config.n_head
        self.width = transformer.config.n_embd // self.heads
        self._positions = transformer.wpe
        self._norm = transformer.ln_f

    def enter(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self._positions(positions)

    def turns(self, _positions: Tensor) -> None:
        return None

    def project(self, layer: Any, x: Tensor, _turns: None) -> tuple[Tensor, Tensor, Tensor]:
        shape = (*x.shape[:2], self.heads, self.width)
        query, key, value = layer.attn.c_attn(layer.ln_1(x)).chunk(3, dim=-1)
        return query.view(shape), key.view(shape), value.view(shape)

    def leave(self, layer: Any, x: Tensor, attended: Tensor) -> Tensor:
        x = layer.attn.c_proj(attended) + x
        return x + layer.mlp(layer.ln_2(x))

    def finish(self, x: Tensor) -> Tensor:
        return self._norm(x)


class Backbone:
    """Reads embeddings into a cache. `heads_heard` are (layer, head) whose attention `read` returns."""

    def __init__(self, t3: Any, *, heads_heard: Sequence[tuple[int, int]] = ()) -> None:
        self.dtype, self.device = t3.speech_head.weight.dtype, t3.device
        self._kind: _Kind = _Gpt2(t3.tfmr) if t3.is_gpt else _Llama(t3.tfmr, self.dtype, self.device)
        self.hidden_size: int = t3.dim
        self._head = t3.speech_head
        self._heads_heard = heads_heard
        self._index = torch.arange(LENGTHS[-1], device=self.device)

    def cache(self) -> Cache:
        """Return a cache that this transformer can read into; as yet without any room."""
        kind = self._kind
        return Cache(len(kind.layers), kind.heads, kind.width, self.dtype, self.device)

    def positions(self, first: int, end: int) -> Tensor:
        """Return (1, n): the numbers from `first` to before `end`, on the device."""
        return self._index[None, first:end]

    @property
    def is_sized(self) -> bool:
        """What `read` costs grows with its `length`, and not only with what was read."""
        return True

    @property
    def has_kernels(self) -> bool:
        """It computes by kernels of its own."""
        return False

    @property
    def can_say(self) -> bool:
        """`say` is there."""
        return False

    def say(self, slots: Slots, cache: Cache) -> None:
        """Carry out a whole step of all slots, from their last tokens to the next ones; no top-p drops anything."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (rows, ids) float32 for hidden states (rows, hidden) that `read` returned."""
        logits: Tensor = self._head(self._kind.finish(hidden)).float()
        return logits

    def read(
        self, x: Tensor, cache: Cache, rows: slice | Tensor, positions: Tensor, length: int
    ) -> tuple[Tensor, Tensor | None]:
        """Read embeddings `x` (rows, n, hidden) into `rows` of the cache at `positions`, (rows or 1, n).

        They see all that stands at their own position and before it, of the first `length` positions. Waits for
        nothing. Returns the hidden state of the last, (rows, hidden), and the attention of the heads that are heard,
        their mean, (every other row, n, length): the rows between are blind to the text.
        """
        kind = self._kind
        x = kind.enter(x.to(self.dtype), positions)
        turns = kind.turns(positions)
        mask = self._mask(positions, length)
        row = self._rows(rows)[:, None]
        heard: dict[tuple[int, int], Tensor] = {}
        for index, layer in enumerate(kind.layers):
            query, key, value = kind.project(layer, x, turns)
            keys, values = cache.keys[index], cache.values[index]
            keys[row, :, positions] = key
            values[row, :, positions] = value
            query = query.transpose(1, 2)
            keys, values = keys[rows, :, :length], values[rows, :, :length]
            attended = scaled_dot_product_attention(query, keys, values, attn_mask=mask[:, None])
            x = kind.leave(layer, x, attended.transpose(1, 2).flatten(2))
            for pair in self._heads_heard:
                if pair[0] == index:
                    heard[pair] = attention_of(query[::2, pair[1]], keys[::2, pair[1]], mask[::2])
        mean = torch.stack([heard[pair] for pair in self._heads_heard]).mean(0) if heard else None
        return x[:, -1], mean

    def _rows(self, rows: slice | Tensor) -> Tensor:
        """Return the numbers of rows, on the device."""
        return self._index[rows] if isinstance(rows, slice) else rows

    def _mask(self, positions: Tensor, length: int) -> Tensor:
        """Return 0 where a position may look, else -inf: (rows or 1, n, length)."""
        ahead = self._index[:length] > positions[:, :, None]
        mask = torch.zeros(ahead.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(ahead, -torch.inf)


def attention_of(query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Return the weights (rows, n, length) of one head, float32, as the library's eager attention rounds them."""
    scores = query @ keys.transpose(1, 2) * query.shape[-1] ** -0.5 + mask
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype).float()
