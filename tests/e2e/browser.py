"""Debian's Chromium without a window, on the live page; what goes to its sound card is caught sample by sample."""

from __future__ import annotations

import base64
import contextlib
import shutil
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from playwright.async_api import Browser, Page, async_playwright

from tests.e2e.cluster import until

# Bounds a hang, on a machine that may be ten times slower.
PATIENCE_MS = 60_000
# No sandbox: it cannot be had as root in a container. No gesture: the tests do not always click before a sound.
_ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required",
)  # fmt: skip

# Runs before the page, which knows nothing of it. Every buffer that is scheduled is noted with its instant: together
# they are, to the sample, what goes to the sound card. An analyser at the output says that it really sounds.
_TAP = """
(() => {
  const connect = AudioNode.prototype.connect;
  const start = AudioBufferSourceNode.prototype.start;
  const play = HTMLMediaElement.prototype.play;
  const analysers = new Map();
  const sound = window.sound = { scheduled: [], started: null, rate: 0, peak: 0, hertz: 0, late: 0 };
  function analyser(context) {
    if (analysers.has(context)) return analysers.get(context);
    const made = context.createAnalyser();
    const wave = new Float32Array(made.fftSize);
    const spectrum = new Uint8Array(made.frequencyBinCount);
    made.smoothingTimeConstant = 0;
    Object.assign(sound, { scheduled: [], started: null, rate: context.sampleRate, peak: 0, hertz: 0, late: 0 });
    setInterval(() => {
      made.getFloatTimeDomainData(wave);
      const peak = wave.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      if (peak > 0.01 && sound.started === null) sound.started = performance.now();
      if (peak > sound.peak) {
        sound.peak = peak;
        made.getByteFrequencyData(spectrum);
        sound.hertz = spectrum.indexOf(Math.max(...spectrum)) * context.sampleRate / made.fftSize;
      }
    }, 20);
    analysers.set(context, made);
    return made;
  }
  AudioNode.prototype.connect = function (target, ...rest) {
    if (target instanceof AudioDestinationNode) connect.call(this, analyser(target.context));
    return connect.call(this, target, ...rest);
  };
  AudioBufferSourceNode.prototype.start = function (when, ...rest) {
    if (when < this.context.currentTime) sound.late += 1;
    sound.scheduled.push({ at: Math.round(when * sound.rate), samples: this.buffer.getChannelData(0).slice() });
    return start.call(this, when, ...rest);
  };
  const heard = new WeakSet();
  HTMLMediaElement.prototype.play = function () {
    if (!heard.has(this)) {
      heard.add(this);
      const context = new AudioContext();
      context.createMediaElementSource(this).connect(context.destination);
      context.resume();
    }
    return play.call(this);
  };
})();
"""
_SCHEDULED = """() => {
  const first = Math.min(...sound.scheduled.map((piece) => piece.at));
  const end = Math.max(...sound.scheduled.map((piece) => piece.at + piece.samples.length));
  const line = new Int16Array(end - first);
  for (const piece of sound.scheduled) {
    piece.samples.forEach((value, i) => { line[piece.at - first + i] += Math.round(value * 32768); });
  }
  const bytes = new Uint8Array(line.buffer);
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(text);
}"""


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Start Chromium for the length of the block."""
    path = shutil.which("chromium")
    assert path is not None, "chromium is missing: apt-get install chromium"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            await browser.close()


class Visit:
    """One visit to the page, in a tab with nothing stored. `troubles` are what the browser complained about."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.troubles: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    async def open(self) -> None:
        await self.page.add_init_script(_TAP)
        await self.page.goto(self.url)
        await self.page.locator('#link[data-state="live"]').wait_for()
        await self.page.locator("#voice option").first.wait_for(state="attached")

    async def text(self, selector: str) -> str:
        return (await self.page.locator(selector).inner_text()).strip()

    async def wait_true(self, expression: str) -> None:
        """Wait until an expression holds in the page. Asked from outside: the page's policy forbids `eval`."""
        await until(lambda: self.page.evaluate(expression), expression)

    async def type(self, text: str, **choices: str) -> None:
        """Fill the box; `choices` by the ids of their fields."""
        await self.page.fill("#text", text)
        for name, value in choices.items():
            await self.page.select_option(f"#{name}", value)

    async def sound(self) -> dict[str, Any]:
        """What the analyser saw: instant of the first sound, loudest peak and its strongest frequency."""
        seen: dict[str, Any] = await self.page.evaluate(
            "({started: sound.started, peak: sound.peak, hertz: sound.hertz, late: sound.late})"
        )
        return seen

    async def wait_started(self) -> None:
        """Wait for the first sound that the analyser hears."""
        await self.wait_true("sound.started !== null")

    async def scheduled(self) -> NDArray[np.int16]:
        """Return what was given to the sound card so far, on its own line of time, gaps as silence."""
        return np.frombuffer(base64.b64decode(await self.page.evaluate(_SCHEDULED)), "<i2")


@contextlib.asynccontextmanager
async def visit(browser: Browser, url: str, **context: Any) -> AsyncIterator[Visit]:
    """Open the page for the length of the block; `context` as playwright's new_context has it."""
    made = await browser.new_context(**context)
    try:
        made.set_default_timeout(PATIENCE_MS)
        visiting = Visit(await made.new_page(), url)
        await visiting.open()
        yield visiting
    finally:
        await made.close()
