"""The token stage: from text and voice to speech tokens, one token a step for every run, all runs at once.

Each run has a slot: a row of every column in `Slots` and, with guidance, two rows of the cache. Runs begin and end at
any step. The host never waits for the device within a step: a token is read when it has come over by itself, on CUDA
one step late.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from chatterbox.models.t3.inference.alignment_stream_analyzer import LLAMA_ALIGNED_HEADS
from torch import Tensor

from worker.models.chatterbox import alignment
from worker.models.chatterbox.arrivals import Arrivals
from worker.models.chatterbox.cache import LENGTHS, batch_bucket, length_bucket
from worker.models.chatterbox.conditionals import Voice
from worker.models.chatterbox.devices import take_stream
from worker.models.chatterbox.family import START_SPEECH, STOP_SPEECH, Family
from worker.models.chatterbox.fused import backbone_of
from worker.models.chatterbox.graphs import StepGraphs
from worker.models.chatterbox.prefixes import Prefixes
from worker.models.chatterbox.reading import Reader, TokenRun
from worker.models.chatterbox.sampler import Sampling, draw
from worker.models.chatterbox.slots import Slots
from worker.models.chatterbox.transit import sent

# A step writes at a run's position and goes one on; and where the run is not heard any more, others' steps write there.
_AHEAD = 2


class NoSlot(Exception):
    """There are more runs than the stage was made for. A fault of ours: the scheduler admits no more."""


class TokenStage:
    """The token model and the loop around it. One thread; `slots` runs at most."""

    def __init__(self, t3: Any, family: Family, slots: int) -> None:
        self._t3 = t3
        self._family = family
        self._rows = 1 if family.is_turbo else 2  # of a slot; with guidance the second is blind to the text
        take_stream(t3.device)
        self._backbone = backbone_of(t3, LLAMA_ALIGNED_HEADS if family.is_multilingual else ())
        self._prefixes = Prefixes(t3, self._backbone)
        self._cache = self._backbone.cache()
        self._count = slots
        self._slots = Slots.empty(slots, t3.hp.speech_tokens_dict_size, t3.device)
        self._part = functools.cache(self._slots.part)
        self._reader = Reader(self._backbone, self._prefixes, self._cache, self._part, self._rows)
        # Who has a slot. Weakly, so that a run that somebody forgot to end gives its slot back nevertheless.
        self._held: weakref.WeakValueDictionary[int, TokenRun] = weakref.WeakValueDictionary()
        self._due: frozenset[int] = frozenset()  # what is in `is_due` on the device
        self._graphs = StepGraphs(self._say, t3.device, self._nobody_due)
        self._arrivals: Arrivals[TokenRun] = Arrivals(self._slots.out)
        self._is_late = t3.device.type == "cuda"

    def __repr__(self) -> str:
        return f"<TokenStage slots={len(self._held)}/{self._count} {self._cache} {self._prefixes}>"

    @property
    def has_kernels(self) -> bool:
        return self._backbone.has_kernels

    @property
    def free(self) -> int:
        """How many runs could begin now."""
        return self._count - len(self._held)

    @torch.inference_mode()
    def warm_up(self, positions: int) -> None:
        """Where steps are recorded: take the memory for all slots of so many positions, and record all their shapes.

        Elsewhere memory is taken as it is needed.
        """
        if self._t3.device.type != "cuda":
            return
        self._make_room(self._count, positions)
        for batch in sorted({self._batch(count) for count in range(1, self._count + 1)}, reverse=True):
            for length in sorted({self._length(length) for length in LENGTHS if length <= self._cache.length}):
                self._graphs.record(batch, length, self._family.is_turbo)
        self._reader.warm_up(self._count)

    @torch.inference_mode()
    def begin(
        self, voice: Voice, text: Tensor, sampling: Sampling, exaggeration: float, tokens: Sequence[int] = ()
    ) -> TokenRun:
        """Take a slot for a text, and the `tokens` that another worker made of it already; `step` reads and goes on.

        Raises:
            NoSlot: none is free.
            ValueError: the text is longer than any model's.
        """
        slot = next((slot for slot in range(self._count) if slot not in self._held), None)
        if slot is None:
            raise NoSlot(f"all {self._count} slots of the token stage are taken")
        prefix = self._prefixes.take(voice, exaggeration)
        unread = self._prompt(sent(text.tolist(), self._t3.device))
        spoken = [START_SPEECH, *tokens]
        if tokens:
            given = sent(spoken, self._t3.device)
            unread = torch.cat([unread, self._speech(given[:-1], first=0)], dim=1)
        end = prefix.length + unread.shape[1] + 1
        self._make_room(slot + 1, end + _AHEAD)
        part = self._part(slot, slot + 1)
        sampling.enter(part)
        part.position.zero_()
        part.is_alive.fill_(True)
        part.drawn.fill_(len(tokens))
        part.seen.zero_()
        for token, column in zip(spoken[-2:][::-1], (part.token, part.previous), strict=False):
            column.fill_(token)
        if tokens:
            part.seen[:, given[1:]] = True
        alignment.watch(part, prefix.length, len(text) if self._family.is_multilingual else 0)
        run = TokenRun(list(tokens), slot=slot, prefix=prefix, unread=unread, speech=end - len(tokens))
        run.is_cut = sampling.is_cut
        self._held[slot] = run
        return run

    def end(self, run: TokenRun) -> None:
        """Give the run's slot back, if it has it still. It will not be stepped again; its tokens stay as they are."""
        if run.slot is not None:
            del self._held[run.slot]
            run.slot = run.prefix = run.unread = None

    @torch.inference_mode()
    def step(self, runs: Sequence[TokenRun]) -> None:
        """Draw the next token of every run; those that have just begun are read first.

        If anybody has a token to draw, the newcomers together read one piece, `PIECE` positions of each that is in it;
        and draw no token before they are whole. A token that was drawn is in `tokens` when this returns; on CUDA, when
        the next one does.
        """
        assert all(run.slot is not None for run in runs), "stepped after its end"
        if unread := [run for run in runs if not run.is_read]:
            self._reader.read_on(unread, is_awaited=len(unread) < len(runs))
        if speaking := [run for run in runs if run.is_read]:
            self._speak(speaking)
        for run, token in self._arrivals.take(but_last=self._is_late and bool(speaking)):
            self._hear(run, token)

    # -- a step

    def _speak(self, runs: Sequence[TokenRun]) -> None:
        self._close_ranks()
        self._set_due(frozenset(run.slot for run in runs if run.slot is not None))
        longest = max(run.position for run in runs) + _AHEAD
        batch = self._batch(max(self._due) + 1)
        self._make_room(batch, longest)
        self._graphs(batch, self._length(longest), any(run.is_cut for run in runs))
        for run in runs:
            run.position += 1
        self._arrivals.send([(run.slot, run) for run in runs if run.slot is not None])

    def _hear(self, run: TokenRun, token: int) -> None:
        if run.slot is None or token < 0:
            return  # it was ended meanwhile, or had drawn its end before
        if token == STOP_SPEECH:
            run.has_ended = True
            self.end(run)
        else:
            run.tokens.append(token)

    def _say(self, batch: int, length: int, is_cut: bool = True) -> None:
        """Read the last token of the first `batch` slots and draw the next one. Waits for nothing; may be recorded."""
        slots = self._part(0, batch)
        if self._backbone.can_say and not is_cut:
            self._backbone.say(slots, self._cache)
            return
        on = slots.is_alive & slots.is_due
        x = self._t3.speech_emb(slots.token)
        if not self._family.is_turbo:
            x = x + self._t3.speech_pos_emb.emb(slots.drawn)
        rows = self._rows * batch
        positions = slots.position[:, None].expand(-1, self._rows).reshape(rows, 1)
        x = x[:, None].expand(-1, self._rows, -1).reshape(rows, 1, -1)
        hidden, attention = self._backbone.read(x, self._cache, slice(0, rows), positions, length)
        slots.position.add_(on)
        now = None if attention is None else alignment.follow(slots, attention[:, -1], slots.drawn, on)
        logits = self._backbone.logits(hidden)
        if not self._family.is_turbo:
            logits = logits[::2] + slots.cfg_weight[:, None] * (logits[::2] - logits[1::2])
        if now is not None:
            logits = alignment.judged(slots, logits, now)
        slots.take(draw(logits, slots, is_turbo=self._family.is_turbo, is_cut=is_cut), on)

    @contextmanager
    def _nobody_due(self) -> Iterator[None]:
        due = self._due
        self._set_due(frozenset())
        try:
            yield
        finally:
            self._set_due(due)

    def _set_due(self, due: frozenset[int]) -> None:
        if due != self._due:
            self._slots.is_due.copy_(sent([slot in due for slot in range(self._count)], self._t3.device))
            self._due = due

    # -- slots

    def _batch(self, count: int) -> int:
        """Return how many slots a step computes so that `count` are in it: few sizes, each with its own recordings."""
        return min(batch_bucket(count), self._count)

    def _length(self, positions: int) -> int:
        """Return for how many positions a step is recorded so that these are in it."""
        return length_bucket(positions) if self._backbone.is_sized else self._cache.length

    def _make_room(self, slots: int, positions: int) -> None:
        rows, length = self._rows * self._batch(slots), length_bucket(positions)
        if not self._cache.has_room(rows, length):
            # First: if there is no memory for all of it, some of the tensors are other ones nevertheless.
            self._graphs.forget()
            self._reader.forget()
            self._cache.grow(rows, length)

    def _close_ranks(self) -> None:
        """Move runs into slots that have come free before them, if that makes the batch smaller."""
        batch = self._batch(len(self._held))
        free = (slot for slot in range(batch) if slot not in self._held)
        for source, run in sorted(self._held.items()):
            if source >= batch:
                target = next(free)
                self._cache.move(self._reader.rows_of(source), self._reader.rows_of(target), run.position)
                self._slots.move(source, target)
                del self._held[source]
                self._held[target] = run
                run.slot = target

    # -- what is given

    def _prompt(self, text: Tensor) -> Tensor:
        """Return (rows, n, hidden): the text, and where there are two begins of speech, the first; the second row is
        blind to the text.

        Guidance of 0 has two rows as well: upstream has one there, and fails.
        """
        t3 = self._t3
        words = t3.text_emb(text)[None]
        if self._family.is_turbo:
            return words
        begin = self._speech(torch.full((1,), START_SPEECH, device=t3.device), first=0)
        words = torch.cat([words, torch.zeros_like(words)]) + t3.text_pos_emb(text[None])
        # Two of them, both at position 0: t3.py:260 and :319. A step reads the second.
        return torch.cat([words, begin], dim=1)

    def _speech(self, tokens: Tensor, first: int) -> Tensor:
        """Return the embeddings of speech tokens (n,), the first of them at position `first`: (rows, n, hidden)."""
        t3 = self._t3
        embeddings = t3.speech_emb(tokens)[None]
        if self._family.is_turbo:
            return embeddings
        positions = self._backbone.positions(first, first + len(tokens))
        return (embeddings + t3.speech_pos_emb.emb(positions)).expand(2, -1, -1)
