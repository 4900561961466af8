// The text that was sent, cut where the gateway cut it: what is being made, what is made, what is heard.

import { make } from "/page/words.js";

const PAUSE_MARK = /\[\s*pause[^\]]*\]/gi;

export class Segments {
  #element;
  #text = [];
  #parts = [];
  #plan = "";

  constructor(element) {
    this.#element = element;
  }

  get characters() { return this.#text.length; }

  begin(text) {
    this.#text = [...text.replace(PAUSE_MARK, " ")];
    this.#plan = "";
    this.#parts = [];
    this.#element.replaceChildren(this.#text.join(""));
  }

  /** Cut the text by the lengths of its segments. The gateway leaves out marks and blanks, so this is near the truth. */
  plan(lengths) {
    const key = lengths.join();
    if (key === this.#plan) return;
    this.#plan = key;
    let at = 0;
    this.#parts = lengths.map((length, index) => {
      while (at < this.#text.length && /\s/.test(this.#text[at])) at += 1;
      const end = index === lengths.length - 1 ? this.#text.length : at + length;
      const span = make("span", "segment");
      span.dataset.state = "waiting";
      span.append(make("sup", "", String(index + 1)), this.#text.slice(at, end).join(""));
      at = end;
      return { span, seconds: 0, until: Infinity };
    });
    this.#element.replaceChildren(...this.#parts.flatMap((part) => [part.span, " "]));
  }

  take(runs) {
    for (const part of this.#parts) part.seconds = 0;
    for (const run of runs) {
      const part = this.#parts[run.index];
      if (!part) continue;
      part.seconds += run.audio_seconds;
      part.span.title = run.worker;
      if (part.span.dataset.state !== "made") {
        part.span.dataset.state = run.end === "spoken" ? "made" : run.ended === null ? "running" : "waiting";
      }
    }
    let until = 0;
    for (const part of this.#parts) {
      until += part.seconds;
      part.until = part.span.dataset.state === "made" ? until : Infinity;
    }
  }

  /** All audio is here, whatever the last snapshot said. */
  done(runs) {
    this.take(runs);
    for (const part of this.#parts) part.span.dataset.state = "made";
  }

  /** Mark the segment at this position of the sound. */
  hear(position) {
    const now = this.#parts.findIndex((part) => position < part.until);
    this.#parts.forEach((part, index) => part.span.classList.toggle("heard", index === now && position > 0));
  }
}
