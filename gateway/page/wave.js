// The sound as a picture, drawn as it comes; a slider over it moves through the sound.

import { fitted } from "/page/fleet.js";

const PEAKS_A_SECOND = 50;
const STEP_SECONDS = 2;

export class Wave {
  #canvas;
  #peaks = [];
  #rest = { peak: 0, samples: 0 };
  #expected = 0;
  #player = null;

  constructor(canvas, onseek) {
    this.#canvas = canvas;
    canvas.addEventListener("pointerdown", (event) => onseek(event.offsetX / canvas.clientWidth * this.#span()));
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -STEP_SECONDS, ArrowRight: STEP_SECONDS };
      if (event.key in steps) onseek(Math.max(0, this.#player.position + steps[event.key]));
      else if (event.key === "Home") onseek(0);
      else return;
      event.preventDefault();
    });
  }

  /** Begin anew; `expectedSeconds` keeps the picture from shrinking with every piece that comes. */
  begin(player, expectedSeconds) {
    this.#player = player;
    this.#peaks = [];
    this.#rest = { peak: 0, samples: 0 };
    this.#expected = expectedSeconds;
  }

  add(samples, rate) {
    const width = Math.round(rate / PEAKS_A_SECOND);
    for (const sample of samples) {
      this.#rest.peak = Math.max(this.#rest.peak, Math.abs(sample));
      this.#rest.samples += 1;
      if (this.#rest.samples === width) {
        this.#peaks.push(this.#rest.peak);
        this.#rest = { peak: 0, samples: 0 };
      }
    }
  }

  whole() {
    this.#expected = 0;
  }

  draw() {
    const style = getComputedStyle(this.#canvas);
    const { context, width, height } = fitted(this.#canvas);
    const [heard, unheard] = [style.getPropertyValue("--accent"), style.getPropertyValue("--faint")];
    const span = this.#span();
    const position = this.#player?.position ?? 0;
    const top = Math.max(0.2, ...this.#peaks);
    const bars = Math.floor(width / 3);
    for (let bar = 0; bar < bars; bar += 1) {
      const from = Math.floor(bar / bars * span * PEAKS_A_SECOND);
      const to = Math.max(from + 1, Math.floor((bar + 1) / bars * span * PEAKS_A_SECOND));
      if (from >= this.#peaks.length) break;
      const peak = Math.max(...this.#peaks.slice(from, to)) / top;
      const size = Math.max(1.5, peak * (height - 2));
      context.fillStyle = (bar + 0.5) / bars * span <= position ? heard : unheard;
      context.fillRect(bar * 3, (height - size) / 2, 2, size);
    }
    this.#canvas.setAttribute("aria-valuemax", (this.#player?.duration ?? 0).toFixed(1));
    this.#canvas.setAttribute("aria-valuenow", position.toFixed(1));
    this.#canvas.setAttribute("aria-valuetext", `${position.toFixed(1)} seconds`);
  }

  #span() {
    return Math.max(this.#expected, this.#player?.duration ?? 0, 0.5);
  }
}
