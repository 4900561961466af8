"""How what is given comes into the cache: a voice's prefix, a text, the tokens that another worker has made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from worker.models.chatterbox import alignment
from worker.models.chatterbox.backbone import Backbone
from worker.models.chatterbox.cache import Cache, length_bucket
from worker.models.chatterbox.graphs import FunctionGraphs, few_rows
from worker.models.chatterbox.prefixes import Prefix, Prefixes
from worker.models.chatterbox.slots import Slots
from worker.models.chatterbox.transit import sent

# So many positions of a newcomer's text are read in one step, if others wait for theirs. Two rows of 64 are what a
# step of 64 runs is, about.
PIECE = 64
# On a GPU to read for many takes hardly longer than for one; on a CPU as much longer as they are more.
_TOGETHER_GPU = 16


@dataclass(slots=True, eq=False, weakref_slot=True)
class TokenRun:
    """One text being turned into tokens. `tokens` are ids of sound; `has_ended` once the model said that it is done.

    It has a slot until it has ended, or is ended, or nobody knows it any more.
    """

    tokens: list[int]
    has_ended: bool = False
    slot: int | None = None  # None once it was given back
    position: int = 0  # how much of it stands in the cache
    prefix: Prefix | None = None  # that is not in the cache yet
    unread: Tensor | None = None  # (rows, n, hidden) of text and given tokens, behind the prefix; a step reads the last
    speech: int = 0  # position of the first given token
    is_cut: bool = False  # its top-p drops something

    @property
    def is_read(self) -> bool:
        """All that was given is in the cache but the last, and every step draws a token."""
        return self.unread is None


class Reader:
    """Reads for the runs that have just begun. The engine thread's; on CUDA in recordings of few shapes."""

    def __init__(
        self, backbone: Backbone, prefixes: Prefixes, cache: Cache, part: Callable[[int, int], Slots], rows: int
    ) -> None:
        """`rows` of the cache belong to each slot."""
        self._backbone = backbone
        self._prefixes = prefixes
        self._cache = cache
        self._part = part
        self._rows = rows
        self._graphs = FunctionGraphs(backbone.device)
        self.together = _TOGETHER_GPU if self._graphs.is_recording else 1

    def read_on(self, runs: Sequence[TokenRun], *, is_awaited: bool) -> None:
        """Read on: one piece if somebody is waiting, else until the first of the runs is read."""
        while not runs[0].is_read:
            first = runs[0].prefix
            if first is not None and not first.is_whole:
                self._prefixes.read_on(first, PIECE)
            else:
                self._read_pieces(self._group(runs))
            if is_awaited:
                return

    def rows_of(self, slot: int | None) -> slice:
        assert slot is not None, "it was given back"
        return slice(self._rows * slot, self._rows * (slot + 1))

    def forget(self) -> None:
        """Drop all recordings: the tensors that they speak of are there no more."""
        self._graphs.forget()

    def warm_up(self, most: int) -> None:
        """Have the reading for up to so many runs at once recorded. For CUDA, while nobody has a slot."""
        for count in dict.fromkeys(few_rows(n) for n in range(1, min(most, self.together) + 1)):
            x = torch.zeros(self._rows * count, PIECE, self._backbone.hidden_size, device=self._backbone.device)
            self._read(x, [TokenRun([], slot=0)] * count, PIECE)

    # -- a piece

    def _group(self, runs: Sequence[TokenRun]) -> list[TokenRun]:
        """Return the first and whose next pieces can be read with its own: all are padded to one length, and there
        must be room for that."""
        group: list[TokenRun] = []
        for run in runs:
            if run.is_read or not (run.prefix is None or run.prefix.is_whole):
                continue
            if group and not self._has_room([*group, run]):
                continue
            if run.prefix is not None:
                # And then it must be read: until then others' steps write at the slot's position, which is 0.
                self._cache.put(run.prefix.cache, self.rows_of(run.slot))
                run.position, run.prefix = run.prefix.length, None
            group.append(run)
            if len(group) == self.together:
                break
        return group

    def _has_room(self, runs: Sequence[TokenRun]) -> bool:
        begins = (run.position if run.prefix is None else run.prefix.length for run in runs)
        return max(begins) + PIECE <= self._cache.length

    def _read_pieces(self, runs: Sequence[TokenRun]) -> None:
        """Read the next piece of each at once. Behind the end of a shorter one something is written that nobody reads:
        what comes there is written before."""
        pieces = [run.unread[:, :PIECE] for run in runs if run.unread is not None]
        is_recorded = self._graphs.is_recording and self._has_room(runs)
        longest = PIECE if is_recorded else max(piece.shape[1] for piece in pieces)
        x = torch.cat([pad(piece, (0, 0, 0, longest - piece.shape[1])) for piece in pieces])
        if is_recorded:
            # One of few shapes, filled up with the first once more: it writes what it writes anyway.
            more = few_rows(len(runs)) - len(runs)
            attention = self._read(torch.cat([x, *[x[: self._rows]] * more]), [*runs, *[runs[0]] * more], longest)
        elif len(runs) > 1:
            attention = self._read(x, runs, longest)
        else:
            begin, end = runs[0].position, runs[0].position + longest
            positions, rows = self._backbone.positions(begin, end), self.rows_of(runs[0].slot)
            _, attention = self._backbone.read(x, self._cache, rows, positions, length_bucket(end))
        for number, (run, piece) in enumerate(zip(runs, pieces, strict=True)):
            self._have_read(run, piece.shape[1], None if attention is None else attention[number : number + 1])

    def _read(self, x: Tensor, runs: Sequence[TokenRun], count: int) -> Tensor | None:
        """Read `count` positions of each run, each at its own place; returns the attention of the heads heard."""
        rows = [row for run in runs for row in range(self.rows_of(run.slot).start, self.rows_of(run.slot).stop)]
        begins = [run.position for run in runs for _ in range(self._rows)]
        row, begin = sent([*rows, *begins], self._backbone.device).view(2, -1)
        positions = begin[:, None] + self._backbone.positions(0, count)
        attention: Tensor | None = self._graphs(self._into_cache, x=x, row=row, positions=positions)
        return attention

    def _into_cache(self, x: Tensor, row: Tensor, positions: Tensor) -> Tensor | None:
        return self._backbone.read(x, self._cache, row, positions, self._cache.length)[1]

    def _have_read(self, run: TokenRun, count: int, attention: Tensor | None) -> None:
        assert run.slot is not None
        assert run.unread is not None
        slots = self._part(run.slot, run.slot + 1)
        end = run.position + count
        if attention is not None:
            on = torch.ones(1, dtype=torch.bool, device=self._backbone.device)
            # The alignment goes forward a token at a time, from the position in front of the first one.
            for position in range(max(run.position, run.speech - 1), end):
                frame = self._backbone.positions(position - run.speech + 1, position - run.speech + 2)[0]
                alignment.follow(slots, attention[:, position - run.position], frame, on)
        run.position = end
        slots.position.fill_(end)
        run.unread = run.unread[:, PIECE:] if run.unread.shape[1] > PIECE else None
