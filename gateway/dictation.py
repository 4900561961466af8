"""A speech whose text arrives in pieces: what the caller says, on its way to what is spoken."""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.arriving import ArrivingText
from gateway.assembler import Flushed
from gateway.journey import Journey
from gateway.plan import Item, Speak
from gateway.speech import Speech
from wire.errors import TtsError


class Dictation:
    """A speech whose text arrives in pieces. Made by `SpeechService.dictated`."""

    def __init__(self, speech: Speech, text: ArrivingText, journey: Journey, charge: Callable[[int], None]) -> None:
        self.speech = speech
        self._text = text
        self._journey = journey
        self._charge = charge

    def add(self, piece: object) -> None:
        """Take the next piece of the text. What makes it unspeakable only with others fails the speech.

        Raises:
            TtsError: this piece cannot be taken; nothing of it was, and the next one may be.
        """
        checked = self._text.checked(piece)
        self._say(lambda: self._text.take(checked))

    def flush(self) -> None:
        """Say all that was taken, without waiting for more."""
        self._say(self._text.flush)
        self.speech.say([Flushed()])

    def pause(self) -> None:
        """The caller pauses: say what was taken, but for a word that may be half of one."""
        self._say(self._text.flush_words)

    def end(self) -> None:
        """Say what is left; there is no more."""
        self._say(self._text.flush)
        self.speech.end()

    def _say(self, take: Callable[[], list[Item]]) -> None:
        if self.speech.has_failed:
            return
        try:
            items = take()
        except TtsError as error:
            self.speech.fail(error)
            return
        self._journey.characters = self._text.characters
        if characters := sum(len(item.text) for item in items if isinstance(item, Speak)):
            if self._journey.planned is None:
                # Until now there was nothing to speak: the author's pauses are not the listener's wait.
                self._journey.received = time.monotonic()
            self._charge(characters)
            self.speech.grow(characters)
        self.speech.say(items)
