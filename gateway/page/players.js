// Two ways to hear a stream while it comes. Both: push(bytes), end(), pause(), resume(), seek(seconds), close(), and
// position, duration, isPlaying, gaps (how often it ran dry before the end).

import { SampleReader } from "/page/wav.js";

// What is scheduled lies so far ahead of the sound card that a busy moment of this page is not heard; after it ran dry,
// further: one long gap is better than many short ones.
const LEAD_SECONDS = 0.08;
const REFILL_SECONDS = 0.3;

/** Samples to Web Audio, each piece scheduled to the sample behind the one before. */
export class SamplePlayer {
  #reader;
  #context = null;
  #sources = new Set();
  #began = 0;  // context time at which sample 0 is or would have been heard
  #next = 0;  // samples scheduled
  #ended = false;
  #onsamples;
  samples = [];
  total = 0;
  gaps = 0;

  /**
   * `rate` is what the sound is expected to have; a WAV's header has the last word. `onsamples(samples, rate)` hears of
   * every piece. Made when somebody presses a button: only then do browsers let a page sound, and the sound card has
   * time to wake up while the first words are made.
   */
  constructor(rate, isWav, onsamples) {
    this.#reader = new SampleReader(isWav ? null : rate);
    this.#onsamples = onsamples;
    this.#open(rate);
  }

  get duration() { return this.total / this.#context.sampleRate; }
  get isPlaying() { return this.total > 0 && this.#context.state === "running" && !this.#isOver; }
  get #isOver() { return this.#ended && this.position >= this.duration; }
  get position() {
    if (!this.total) return 0;
    return Math.min(Math.max(0, this.#context.currentTime - this.#began), this.duration);
  }

  push(bytes) {
    const samples = this.#reader.feed(bytes);
    if (!samples.length) return;
    if (this.#context.sampleRate !== this.#reader.rate) {
      this.#context.close();
      this.#open(this.#reader.rate);
    }
    if (!this.total) this.#began = this.#context.currentTime + LEAD_SECONDS;
    this.samples.push(samples);
    this.total += samples.length;
    this.#onsamples(samples, this.#reader.rate);
    this.#schedule(samples);
  }

  end() { this.#ended = true; }
  pause() { this.#context.suspend(); }

  async resume() {
    if (this.#isOver) this.seek(0);
    await this.#context.resume();
  }

  /** Go on from there. What has not come yet follows as it comes. */
  seek(seconds) {
    const context = this.#context;
    for (const source of this.#sources) source.stop();
    this.#sources.clear();
    const first = Math.min(this.total, Math.max(0, Math.round(seconds * context.sampleRate)));
    this.#began = context.currentTime + LEAD_SECONDS - first / context.sampleRate;
    this.#next = first;
    let at = 0;
    for (const piece of this.samples) {
      if (at + piece.length > first) this.#schedule(piece.subarray(Math.max(0, first - at)));
      at += piece.length;
    }
  }

  close() {
    this.#context.close();
    this.#sources.clear();
  }

  #open(rate) {
    // At the sound's own rate: the browser then converts once, for the whole of it, and no seam is heard.
    this.#context = new AudioContext({ sampleRate: rate, latencyHint: "interactive" });
    this.#context.resume();
  }

  #schedule(samples) {
    const context = this.#context;
    const rate = context.sampleRate;
    let due = this.#began + this.#next / rate;
    if (due < context.currentTime) {
      // It came too late: all that follows is heard later by as much.
      this.gaps += 1;
      const late = context.currentTime + REFILL_SECONDS - due;
      this.#began += late;
      due += late;
    }
    const buffer = context.createBuffer(1, samples.length, rate);
    buffer.copyToChannel(samples, 0);
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(context.destination);
    source.onended = () => this.#sources.delete(source);
    source.start(due);
    this.#sources.add(source);
    this.#next += samples.length;
  }
}

/** mp3 and aac to a media element as they come; a format that the browser cannot take in pieces is heard when whole. */
export class MediaPlayer {
  #audio = new Audio();
  #source = null;
  #buffer = null;
  #waiting = [];
  #pieces = [];
  #ended = false;
  #type;
  #url = "";
  gaps = 0;

  constructor(type) {
    this.#type = type;
    this.#audio.addEventListener("waiting", () => { if (this.#audio.currentTime > 0 && !this.#ended) this.gaps += 1; });
    if (MediaPlayer.canStream(type)) {
      this.#source = new MediaSource();
      this.#source.addEventListener("sourceopen", () => {
        this.#buffer = this.#source.addSourceBuffer(type);
        this.#buffer.addEventListener("updateend", () => this.#feed());
        this.#feed();
      });
      this.#open(this.#source);
      this.#play();
    }
  }

  static canStream(type) {
    return "MediaSource" in window && MediaSource.isTypeSupported(type);
  }

  get position() { return this.#audio.currentTime; }
  get duration() {
    if (Number.isFinite(this.#audio.duration)) return this.#audio.duration;
    return this.#audio.buffered.length ? this.#audio.buffered.end(this.#audio.buffered.length - 1) : 0;
  }
  get isPlaying() { return !this.#audio.paused && !this.#audio.ended; }

  push(bytes) {
    if (!this.#source) this.#pieces.push(bytes);
    else {
      this.#waiting.push(bytes);
      this.#feed();
    }
  }

  end() {
    this.#ended = true;
    if (this.#source) this.#feed();
    else {
      this.#open(new Blob(this.#pieces, { type: this.#type }));
      this.#play();
    }
  }

  pause() { this.#audio.pause(); }
  resume() { this.#play(); }
  seek(seconds) { this.#audio.currentTime = seconds; }

  close() {
    this.#audio.pause();
    this.#audio.removeAttribute("src");
    URL.revokeObjectURL(this.#url);
  }

  #open(source) {
    this.#url = URL.createObjectURL(source);
    this.#audio.src = this.#url;
  }

  #play() {
    this.#audio.play().catch(() => {});  // the browser wants a gesture first: the play button is one
  }

  #feed() {
    if (!this.#buffer || this.#buffer.updating || this.#source.readyState !== "open") return;
    if (this.#waiting.length) this.#buffer.appendBuffer(this.#waiting.shift());
    else if (this.#ended) this.#source.endOfStream();
  }
}
