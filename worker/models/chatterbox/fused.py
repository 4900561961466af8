"""The Llama families' transformer in kernels of its own, for a GPU: five or six for a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worker.models.chatterbox.backbone import Backbone, attention_of
from worker.models.chatterbox.cache import Cache
from worker.models.chatterbox.devices import compiled
from worker.models.chatterbox.slots import Slots


def backbone_of(t3: Any, heads_heard: tuple[tuple[int, int], ...] = ()) -> Backbone:
    """Return what reads into a cache: on a GPU the kernels, where there are some for this model and they work."""
    fused: FusedBackbone | None = None
    if t3.device.type == "cuda" and not t3.is_gpt:
        fused = compiled(lambda: FusedBackbone.tried(t3, heads_heard), t3.device, "the token model")
    return fused or Backbone(t3, heads_heard=heads_heard)


class FusedBackbone(Backbone):
    """As `Backbone`, for a Llama; a position costs what stands before it, not the `length`."""

    def __init__(self, t3: Any, *, heads_heard: tuple[tuple[int, int], ...] = ()) -> None:
        # Here: where there is no GPU there is no Triton.
        from worker.models.chatterbox import kernels, step_kernels

        super().__init__(t3, heads_heard=heads_heard)
        self._kernels, self._step_kernels = kernels, step_kernels
        self._tokens, self._places = t3.speech_emb.weight, t3.speech_pos_emb.emb.weight
        self._transformer = t3.tfmr
        self._epsilon = t3.tfmr.config.rms_norm_eps
        self._turns = self._kind.turns(self._index[None])
        self._precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"

    @classmethod
    def tried(cls, t3: Any, heads_heard: tuple[tuple[int, int], ...]) -> FusedBackbone:
        """Return one whose kernels are compiled; raises whatever goes wrong."""
        fused = cls(t3, heads_heard=heads_heard)
        fused.try_out()
        return fused

    @property
    def is_sized(self) -> bool:
        return bool(self._heads_heard)

    def try_out(self) -> None:
        """Compile the kernels for the sizes that there are; raises whatever goes wrong."""
        for count in (1, 8, 16, 32):
            cache = self.cache()
            cache.grow(2 * count, 64)
            x = torch.zeros(2 * count, 1, self.hidden_size, device=self.device)
            self.read(x, cache, slice(0, 2 * count), self.positions(0, 1), 64)
            self.say(Slots.empty(count, len(self._tokens), self.device), cache)

    @property
    def has_kernels(self) -> bool:
        return True

    @property
    def can_say(self) -> bool:
        return not self._heads_heard

    def say(self, slots: Slots, cache: Cache) -> None:
        rows = self._index[: 2 * len(slots.token)]
        x = torch.empty(len(rows), self.hidden_size, dtype=self.dtype, device=self.device)
        self._step_kernels.embed(slots, self._tokens, self._places, x)
        self._layers(x, cache, rows, slots.position, is_step=True)
        self._step_kernels.draw(self.logits(x), slots)

    def logits(self, hidden: Tensor) -> Tensor:
        head = self._head.weight
        out = torch.empty(len(hidden), len(head), device=self.device)
        return self._kernels.project(
            hidden.contiguous(), self._transformer.norm.weight, self._epsilon, [head], out, self._precision
        )

    def read(
        self, x: Tensor, cache: Cache, rows: slice | Tensor, positions: Tensor, length: int
    ) -> tuple[Tensor, Tensor | None]:
        count, n, hidden = x.shape
        # Each layer adds to it in place.
        x = x.to(self.dtype, copy=True).reshape(count * n, hidden)
        row = self._rows(rows)[:, None].expand(count, n).reshape(-1).contiguous()
        place = positions.expand(count, n).reshape(-1).contiguous()
        heard: dict[tuple[int, int], Tensor] = {}

        def hear(index: int, mixed: Tensor) -> None:
            for pair in self._heads_heard:
                if pair[0] == index:
                    query = mixed.view(count, n, 3, self._kind.heads, -1)[::2, :, 0, pair[1]]
                    keys = cache.keys[index][rows, pair[1], :length][::2]
                    heard[pair] = attention_of(query, keys, self._mask(positions, length)[::2])

        self._layers(x, cache, row, place, hear)
        mean = torch.stack([heard[pair] for pair in self._heads_heard]).mean(0) if heard else None
        return x.view(count, n, hidden)[:, -1], mean

    def _layers(
        self,
        x: Tensor,
        cache: Cache,
        row: Tensor,
        place: Tensor,
        hear: Callable[[int, Tensor], None] = lambda _index, _mixed: None,
        *,
        is_step: bool = False,
    ) -> None:
        """Go through the layers with x (n, hidden), in place; `hear` is told each one's queries, which are turned."""
        kernels, precision, epsilon = self._kernels, self._precision, self._epsilon
        inner = self._kind.heads * self._kind.width
        mixed, attended = x.new_empty(len(x), 3 * inner), x.new_empty(len(x), inner)
        risen = x.new_empty(len(x), self._transformer.config.intermediate_size)
        for index, layer in enumerate(self._transformer.layers):
            attention, mlp = layer.self_attn, layer.mlp
            weights = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
            kernels.project(x, layer.input_layernorm.weight, epsilon, weights, mixed, precision)
            keys, values = cache.keys[index], cache.values[index]
            kernels.attend(mixed, self._turns, keys, values, row, place, attended, is_step=is_step)
            hear(index, mixed)
            kernels.add(attended, attention.o_proj.weight, x, precision)
            norm = layer.post_attention_layernorm.weight
            kernels.gate(x, norm, epsilon, mlp.gate_proj.weight, mlp.up_proj.weight, risen, precision)
            kernels.add(risen, mlp.down_proj.weight, x, precision)
