// Workers as cards, each with a lane: what ran in which slot, over the last minute.

import { KEPT_SECONDS } from "/page/runs.js";
import { count, gpuLine, make, say } from "/page/words.js";

const MOST_ROWS = 6;
const FRAME_MS = 50;
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Fleet {
  #list;
  #tip;
  #cards = new Map();
  #runs;
  #own = () => false;
  #colours = null;

  /** `own(request)` says whether a request is this page's. */
  constructor(list, tip, runs, own) {
    this.#list = list;
    this.#tip = tip;
    this.#runs = runs;
    this.#own = own;
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { this.#colours = null; });
    let drawn = 0;
    const frame = (time) => {
      if (!still.matches && time - drawn >= FRAME_MS) {
        drawn = time;
        this.draw();
      }
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  take(snapshot) {
    const here = [...snapshot.workers, ...snapshot.gone.map((worker) => ({ ...worker, state: "gone" }))];
    here.sort((a, b) => a.id.localeCompare(b.id, "en", { numeric: true }));
    for (const [id, card] of this.#cards) {
      if (!here.some((worker) => worker.id === id)) {
        card.root.remove();
        this.#cards.delete(id);
      }
    }
    here.forEach((worker, place) => {
      let card = this.#cards.get(worker.id);
      if (!card) this.#cards.set(worker.id, card = this.#makeCard(worker.id));
      if (this.#list.children[place] !== card.root) this.#list.insertBefore(card.root, this.#list.children[place]);
      this.#fill(card, worker);
    });
    if (still.matches) this.draw();
  }

  draw() {
    this.#colours ??= readColours();
    for (const [id, card] of this.#cards) {
      drawLane(card, this.#runs.of(id), this.#runs.now(), this.#own, this.#colours);
      drawSpark(card.spark, card.speeds, this.#colours);
    }
  }

  #makeCard(id) {
    const root = make("li", "worker");
    const head = make("div", "worker-head");
    const words = make("span", "state");
    const pips = make("span", "pips");
    const speed = make("span", "speed");
    const spark = make("canvas", "spark");
    spark.setAttribute("aria-hidden", "true");
    head.append(make("h3", "", id), words, pips, make("span", "grow"), spark, speed);
    const lane = make("canvas", "lane");
    lane.setAttribute("role", "img");
    const now = make("p", "now");
    const gpus = make("div", "gpus");
    root.append(head, lane, now, gpus);
    const card = { root, words, pips, speed, spark, lane, now, gpus, speeds: [], slots: 1, blocks: [] };
    lane.addEventListener("pointermove", (event) => this.#showTip(card, event));
    lane.addEventListener("pointerleave", () => { this.#tip.hidden = true; });
    return card;
  }

  #fill(card, worker) {
    card.root.dataset.state = worker.state;
    say(card.words, worker.words);
    card.root.classList.toggle("ill", ["ejected", "probation", "failed", "gone", "stopped"].includes(worker.state));
    const isHere = worker.state !== "gone";
    card.pips.hidden = card.speed.hidden = card.spark.hidden = !isHere;
    const runs = this.#runs.of(worker.id);
    const running = runs.filter((run) => run.ended === null).sort((a, b) => a.started - b.started);
    say(card.now, describe(running, this.#own));
    card.lane.setAttribute("aria-label", `${worker.id}, the last minute: ${count(runs.length, "segment")}`);
    if (!isHere) {
      card.gpus.replaceChildren();
      return;
    }
    card.slots = worker.slots;
    if (worker.speeds) card.speeds = worker.speeds;
    else card.speeds = [...card.speeds, worker.speed].slice(-KEPT_SECONDS);
    say(card.speed, `${worker.speed.toFixed(worker.speed < 10 ? 1 : 0)}× real time`);
    card.pips.title = `${worker.in_flight} of ${count(worker.slots, "slot")} taken`;
    say(card.pips, worker.slots <= 8 ? "●".repeat(worker.in_flight) + "○".repeat(worker.slots - worker.in_flight) : "");
    card.pips.dataset.words = `${worker.in_flight} of ${worker.slots}`;
    card.gpus.replaceChildren(
      ...(worker.gpus ?? []).map((gpu) => make("p", "gpu", gpuLine(gpu))),
      ...worker.troubles.map((trouble) => make("p", "trouble", trouble)),
    );
  }

  #showTip(card, event) {
    const block = card.blocks.find((b) => event.offsetX >= b.x && event.offsetX <= b.x + b.w
      && event.offsetY >= b.y && event.offsetY <= b.y + b.h);
    this.#tip.hidden = !block;
    if (!block) return;
    const { run } = block;
    const until = run.ended ?? this.#runs.now();
    const who = this.#own(run.request) ? "yours" : `request ${run.request}`;
    this.#tip.textContent = `${who}, segment ${run.index + 1}: ${run.characters} characters, `
      + `${run.audio_seconds} s of sound in ${(until - run.started).toFixed(2)} s${run.end ? `, ${run.end}` : ""}`;
    this.#tip.style.left = `${Math.min(event.clientX + 12, innerWidth - 280)}px`;
    this.#tip.style.top = `${event.clientY + 14}px`;
  }
}

function describe(running, own) {
  const shown = running.slice(0, 3).map((run) => {
    const who = own(run.request) ? "yours" : run.request;
    return `${who}, segment ${run.index + 1} (${run.characters} characters)`;
  });
  if (running.length > shown.length) shown.push(`${running.length - shown.length} more`);
  return shown.join(" · ");
}

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    ink: read("--ink"), faint: read("--faint"), rule: read("--rule"), track: read("--track"), own: read("--accent"), onOwn: read("--on-accent"),
    bad: read("--bad"), other: [read("--other-1"), read("--other-2"), read("--other-3")],
    font: style.fontFamily,
  };
}

/** Size a canvas for the screen's pixels; return its context in CSS pixels, with its width and height. */
export function fitted(canvas) {
  const ratio = devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

function drawLane(card, runs, now, own, colours) {
  const { context, width, height } = fitted(card.lane);
  const x = (instant) => width - (now - instant) * width / KEPT_SECONDS;
  const rows = Math.min(MOST_ROWS, Math.max(1, card.slots));
  const pitch = height / rows;
  context.fillStyle = colours.track;
  for (let row = 0; row < rows; row += 1) context.fillRect(0, row * pitch + 0.5, width, pitch - 1);
  context.fillStyle = colours.rule;
  for (let age = 15; age < KEPT_SECONDS; age += 15) context.fillRect(Math.round(x(now - age)), 0, 1, height);
  context.font = `${Math.min(11, pitch - 2)}px ${colours.font}`;
  context.textBaseline = "middle";
  card.blocks = [];
  for (const run of runs) {
    const left = Math.max(0, x(run.started));
    const right = x(run.ended ?? now);
    if (right <= 0) continue;
    const block = { run, x: left, y: (run.row % rows) * pitch + 0.5, w: Math.max(1.5, right - left - 0.5), h: pitch - 1 };
    card.blocks.push(block);
    const isOwn = own(run.request);
    const bad = run.end === "failed" || run.end === "moved";
    context.globalAlpha = run.end === "cancelled" ? 0.45 : 1;
    context.fillStyle = isOwn ? colours.own : colours.other[hash(run.request) % colours.other.length];
    context.fillRect(block.x, block.y, block.w, block.h);
    if (bad) {
      context.fillStyle = colours.bad;
      context.fillRect(block.x + block.w - 3, block.y, 3, block.h);
    }
    if (block.w > 16 && pitch > 9) {
      context.fillStyle = isOwn ? colours.onOwn : colours.ink;
      context.fillText(String(run.index + 1), block.x + 4, block.y + block.h / 2 + 0.5, block.w - 6);
    }
    context.globalAlpha = 1;
  }
}

function drawSpark(canvas, speeds, colours) {
  if (canvas.hidden || !canvas.clientWidth) return;
  const { context, width, height } = fitted(canvas);
  const top = Math.max(1, ...speeds);
  const step = width / (KEPT_SECONDS - 1);
  context.beginPath();
  speeds.forEach((speed, i) => {
    context.lineTo(width - (speeds.length - 1 - i) * step, height - 1.5 - speed / top * (height - 3));
  });
  context.strokeStyle = colours.faint;
  context.lineWidth = 1.25;
  context.stroke();
}

function hash(text) {
  let sum = 0;
  for (const character of text) sum = (31 * sum + character.codePointAt(0)) % 65521;
  return sum;
}
