// One request from the box: sent, followed through the line and the fleet, heard as it comes, kept for download.

import { call } from "/page/api.js";
import { ahead } from "/page/line.js";
import { MediaPlayer, SamplePlayer } from "/page/players.js";
import { Segments } from "/page/segments.js";
import { wholeWav } from "/page/wav.js";
import { Wave } from "/page/wave.js";
import { count, say, seconds } from "/page/words.js";

const $ = (id) => document.getElementById(id);
const CHARACTERS_A_SECOND = 15;
const PCM_RATE = 24000;
const MEDIA_TYPES = { mp3: "audio/mpeg", aac: "audio/aac", opus: "audio/ogg;codecs=opus", flac: "audio/flac" };
const SUFFIX = { wav: "wav", mp3: "mp3", opus: "ogg", flac: "flac", aac: "aac", pcm: "pcm" };

export class Speaker {
  request = "";  // id of the newest request, under which the live figures show it
  #choices;
  #runs;
  #wave = new Wave($("wave"), (position) => this.#player?.seek(position));
  #segments = new Segments($("segments"));
  #player = null;
  #controller = null;
  #isWaiting = false;
  #firstAudioSeconds = null;
  #url = "";

  constructor(choices, runs) {
    this.#choices = choices;
    this.#runs = runs;
    $("speak-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.speak();
    });
    $("text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("speak-form").requestSubmit();
    });
    $("stop").addEventListener("click", () => this.stop("Stopped. What was not yet spoken is not spoken."));
    $("play").addEventListener("click", () => (this.#player?.isPlaying ? this.#player.pause() : this.#player?.resume()));
    $("copy").addEventListener("click", () => copy($("curl").textContent));
    this.#animate();
  }

  stop(words) {
    this.#controller?.abort();
    this.#player?.close();
    this.#player = null;
    if (words) say($("spoken-words"), words);
  }

  /** A snapshot came: where in the line is the request, and which of its segments run where? */
  take(snapshot, placeInLine) {
    if (this.#isWaiting && placeInLine) say($("spoken-words"), `In the line. ${ahead(placeInLine.ahead)}`);
    const mine = snapshot.requests.find((request) => request.request === this.request);
    if (mine) this.#segments.plan(mine.plan);
    this.#segments.take(this.#runs.ofRequest(this.request));
  }

  async speak() {
    this.stop("");
    const body = this.#choices.request();
    const controller = this.#controller = new AbortController();
    this.request = `page-${randomHex()}`;
    const player = this.#player = this.#makePlayer(body);
    this.#begin(body);
    const sent = performance.now();
    const pieces = [];
    try {
      const response = await call("/v1/tts", {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-Request-Id": this.request },
        body: JSON.stringify(body),
        signal: controller.signal,
      });
      const seed = Number(response.headers.get("X-TTS-Seed"));
      showCurl({ ...body, seed }, SUFFIX[body.format]);
      const reader = response.body.getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        if (!pieces.length) this.#firstAudio((performance.now() - sent) / 1000);
        pieces.push(value);
        player.push(value);
      }
      player.end();
      await this.#finish(body.format, pieces, response, (performance.now() - sent) / 1000);
    } catch (error) {
      if (controller.signal.aborted) return;
      const kept = pieces.length ? " What was heard is not the whole." : "";
      const why = error instanceof TypeError ? "The connection to the gateway broke off." : error.message;
      say($("spoken-words"), why + kept);
      this.#player?.end();
    } finally {
      if (this.#controller === controller) {
        this.#isWaiting = false;
        $("stop").hidden = true;
      }
    }
  }

  #begin(body) {
    this.#isWaiting = true;
    this.#firstAudioSeconds = null;
    URL.revokeObjectURL(this.#url);
    say($("spoken-words"), "Sent.");
    $("spoken").hidden = false;
    $("stop").hidden = false;
    $("download").hidden = true;
    this.#segments.begin(body.text);
    this.#wave.begin(this.#player, body.text.length / CHARACTERS_A_SECOND / (body.speed ?? 1));
    showCurl(body, SUFFIX[body.format]);
  }

  #makePlayer(body) {
    const { format } = body;
    if (format in MEDIA_TYPES) return new MediaPlayer(MEDIA_TYPES[format]);
    const onsamples = (samples, rate) => this.#wave.add(samples, rate);
    // A pcm answer is at 24 kHz whatever the model speaks at: it has no header to say so.
    const rate = format === "wav" ? this.#choices.sampleRate(body.model) : PCM_RATE;
    return new SamplePlayer(rate, format === "wav", onsamples);
  }

  #firstAudio(after) {
    this.#isWaiting = false;
    this.#firstAudioSeconds = after;
    $("spoken-words").dataset.firstAudioSeconds = after.toFixed(4);
    say($("spoken-words"), `First audio after ${seconds(after)}.`);
  }

  async #finish(format, pieces, response, took) {
    const whole = format === "wav" ? wholeWav(pieces) : pieces;
    const blob = new Blob(whole, { type: response.headers.get("Content-Type") });
    this.#url = URL.createObjectURL(blob);
    Object.assign($("download"), { href: this.#url, download: `speech.${SUFFIX[format]}`, hidden: false });
    $("download").textContent = `Download ${format} (${Math.ceil(blob.size / 1024)} KiB)`;
    const duration = await this.#wholeWave(blob);
    this.#wave.whole();
    this.#segments.done(this.#runs.ofRequest(this.request));
    const ignored = response.headers.get("X-TTS-Ignored-Fields");
    say($("spoken-words"), `First audio after ${seconds(this.#firstAudioSeconds)}. ${seconds(duration)} of sound in `
      + `${seconds(took)}, ${(duration / took).toFixed(1)}× real time.${this.#gapWords()}`
      + `${ignored ? ` This model does not heed: ${ignored}.` : ""}`);
  }

  #gapWords() {
    return this.#player?.gaps ? ` It ran dry ${count(this.#player.gaps, "time")}.` : "";
  }

  /** Return how long the sound is; draws the wave of a codec that only the browser can read. */
  async #wholeWave(blob) {
    if (this.#player instanceof SamplePlayer) return this.#player.duration;
    const context = new OfflineAudioContext(1, 1, 24000);
    const sound = await context.decodeAudioData(await blob.arrayBuffer());
    this.#wave.add(sound.getChannelData(0), sound.sampleRate);
    return sound.duration;
  }

  #animate() {
    const frame = () => {
      const player = this.#player;
      if (player && !$("spoken").hidden) {
        this.#wave.draw();
        this.#segments.hear(player.position);
        say($("clock"), `${player.position.toFixed(1)} / ${player.duration.toFixed(1)} s`);
        $("play").textContent = player.isPlaying ? "❚❚" : "▶";
        $("play").setAttribute("aria-label", player.isPlaying ? "Pause" : "Play");
      }
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }
}

function showCurl(body, suffix) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const key = sessionStorage.getItem("tts-key") === null ? "" : " \\\n  -H \"Authorization: Bearer $TTS_KEY\"";
  $("curl").textContent = `curl -sS ${location.origin}/v1/tts \\\n  -H 'Content-Type: application/json'${key} \\\n`
    + `  -d ${quoted(JSON.stringify(body))} \\\n  -o speech.${suffix}`;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say($("copy"), "Copied");
  } catch {
    getSelection().selectAllChildren($("curl"));  // only pages with TLS may use the clipboard
    say($("copy"), "Selected: press Ctrl C");
  }
  setTimeout(() => say($("copy"), "Copy as curl"), 2000);
}

function randomHex() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
