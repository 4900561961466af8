"""From a segment's text to its sound: which part of it is decoded, what the guards say of that, what is rendered."""

from __future__ import annotations

from collections.abc import MutableMapping

from torch import Tensor

from wire.errors import ErrorCode, TtsError
from worker.models.base import StepOutput
from worker.models.chatterbox import guards
from worker.models.chatterbox.family import Family
from worker.models.chatterbox.guards import Guard
from worker.models.chatterbox.noise import reseeded
from worker.models.chatterbox.s3gen import SoundRun, next_rendering
from worker.models.chatterbox.sampler import Sampling
from worker.models.chatterbox.sounding import SoundThread
from worker.models.chatterbox.t3 import TokenStage
from worker.models.chatterbox.text import to_ids
from worker.models.chatterbox.upstream import Parts
from worker.models.chatterbox.utterance import Part, Utterance, checkpoint_of

_PART_SEEDS = 1000  # attempts at the first part come before these


class Narrator:
    """Leads utterances through the two stages. Engine thread."""

    def __init__(
        self,
        parts: Parts,
        family: Family,
        tokens: TokenStage,
        sound: SoundThread,
        chunk: int | None,
        counts: MutableMapping[Guard, int],
    ) -> None:
        self._parts = parts
        self._family = family
        self._tokens = tokens
        self._sound = sound
        self._chunk = chunk
        self._counts = counts

    def begin(self, utterance: Utterance) -> None:
        """Begin, or go on, with the parts as they are."""
        self._begin_part(utterance)
        self._render(utterance)

    def after_token(self, utterance: Utterance) -> None:
        """Judge what there is of the part, and go on to the next when it is whole.

        Raises:
            TtsError: `segment_failed`: the model makes nothing of this text that could be its speech.
        """
        part, run = utterance.decoding, utterance.run
        assert part is not None
        assert run is not None
        if run.has_ended:
            self._ended(utterance, part)
        elif len(part.tokens) >= guards.most_tokens(part.text):
            self._lost(utterance, part)
        self._render(utterance)

    def collect(self, utterance: Utterance) -> StepOutput:
        """Give out the sound that has its mark, in order."""
        before = utterance.work
        utterance.work = sum(part.sound.work for part in utterance.parts if part.sound is not None)
        progressed = utterance.run is not None or utterance.work != before
        pcm, error = b"", None
        while not utterance.is_spoken and error is None:
            run = utterance.parts[utterance.sounding].sound
            if run is None:
                break
            has_ended = run.has_ended  # before its pieces are looked at: then all of them are there
            while run.pieces and run.pieces[0].done() and error is None:
                mark = run.pieces.popleft()
                error = mark.exception()
                pcm += b"" if error else mark.result()
            error = error or (run.error if has_ended and not run.pieces else None)
            if not has_ended or run.pieces or error is not None:
                break
            utterance.sounding += 1
        skipped = min(utterance.skip_bytes, len(pcm))
        utterance.skip_bytes -= skipped
        pcm = pcm[skipped:]
        if error is not None:
            self.drop(utterance)
            return StepOutput(pcm, error=error if isinstance(error, Exception) else RuntimeError(repr(error)))
        checkpoint = checkpoint_of(utterance) if pcm and not utterance.is_spoken else None
        return StepOutput(pcm, checkpoint, utterance.is_spoken, progressed=progressed)

    def drop(self, utterance: Utterance) -> None:
        """Have neither stage do any more for it."""
        self._end_run(utterance)
        for part in utterance.parts:
            if part.sound is not None:
                self._sound.drop(part.sound)
                for mark in part.sound.pieces:
                    mark.cancel()

    # -- tokens

    def _begin_part(self, utterance: Utterance) -> None:
        """Begin, or begin again, with the first part that is not whole; nothing where all are."""
        self._end_run(utterance)
        part = utterance.decoding
        if part is None:
            return
        request = utterance.request
        ids: Tensor = to_ids(part.text, request.language, self._parts, self._family)
        sampling = Sampling.of(self._family, request.parameters, reseeded(part.seed, part.attempt))
        exaggeration = request.parameters.get("exaggeration", self._family.defaults.get("exaggeration", 0.0))
        utterance.run = self._tokens.begin(utterance.voice, ids, sampling, exaggeration, part.tokens)
        part.tokens = utterance.run.tokens

    def _end_run(self, utterance: Utterance) -> None:
        """Give the slot of the run back. All ways out of a run lead through here."""
        if utterance.run is not None:
            self._tokens.end(utterance.run)
            utterance.run = None

    def _ended(self, utterance: Utterance, part: Part) -> None:
        if (guard := guards.judge(part.text, part.tokens)) is not None:
            self._counts[guard] += 1
            if part.attempt < guards.MAX_REROLLS and not utterance.has_sounded:
                self._reroll(utterance, part)
                return
            if not part.tokens:
                raise _failed("the model ends at once, without a sound", part.text)
            if not utterance.has_sounded and self._chunk is None:
                part.tokens = guards.without_trailing_silence(part.tokens)
        part.is_whole = True
        self._begin_part(utterance)

    def _lost(self, utterance: Utterance, part: Part) -> None:
        """The model does not come to an end: cut the text in two, or try again; never cut the sound."""
        self._counts[Guard.NO_END] += 1
        if utterance.has_sounded:
            raise _failed("the model did not come to an end, after its sound was on the way", part.text)
        cut = guards.halves(part.text)
        if cut is not None and len(utterance.parts) < guards.MAX_PARTS:
            number = utterance.parts.index(part)
            first = len(utterance.parts) + _PART_SEEDS
            seeds = [reseeded(utterance.request.seed, first + i) for i in range(2)]
            utterance.parts[number : number + 1] = [Part(text, seed) for text, seed in zip(cut, seeds, strict=True)]
            self._begin_part(utterance)
        elif part.attempt < guards.MAX_REROLLS:
            self._reroll(utterance, part)
        else:
            raise _failed(f"the model did not come to an end within {len(part.tokens)} tokens", part.text)

    def _reroll(self, utterance: Utterance, part: Part) -> None:
        part.attempt += 1
        part.tokens = []
        self._begin_part(utterance)

    # -- sound

    def _render(self, utterance: Utterance) -> None:
        """Give the sound stage all that may be rendered: at once in chunks, else when all parts are whole.

        All, so that a later part that cannot be spoken is known before the first byte.
        """
        if self._chunk is None and utterance.decoding is not None:
            return
        for number, part in enumerate(utterance.parts):
            while True:
                found = next_rendering(
                    utterance.voice,
                    part.tokens,
                    part.rendered,
                    is_whole=part.is_whole,
                    family=self._family,
                    chunk=self._chunk,
                )
                if found is None:
                    break
                part.rendered, rendering = found
                part.sound = part.sound or SoundRun(utterance.voice, self._sound_seed(utterance, number))
                self._sound.render(part.sound, rendering)
            if not part.is_whole:
                return

    @staticmethod
    def _sound_seed(utterance: Utterance, number: int) -> int:
        seed = utterance.request.seed
        return seed if number == 0 else reseeded(seed, _PART_SEEDS + number)


def _failed(why: str, text: str) -> TtsError:
    return TtsError(ErrorCode.SEGMENT_FAILED, f"{why}: {text[:60]!r}")
