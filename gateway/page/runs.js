// What ran where in the last minute: the runs of all snapshots put together, and the gateway's clock.

export const KEPT_SECONDS = 60;

export class Runs {
  #byNumber = new Map();
  #offset = Infinity;  // the gateway's clock less ours; the smallest delay that was seen is nearest to the truth
  #uptime = 0;

  /** The gateway's clock, now. */
  now() {
    return performance.now() / 1000 - (Number.isFinite(this.#offset) ? this.#offset : 0);
  }

  take(snapshot) {
    if (snapshot.uptime_seconds < this.#uptime) this.#forget();  // another gateway, with another clock
    this.#uptime = snapshot.uptime_seconds;
    this.#offset = Math.min(this.#offset, performance.now() / 1000 - snapshot.now);
    const running = new Set();
    for (const row of snapshot.runs) {
      const run = Object.fromEntries(snapshot.run_fields.map((name, i) => [name, row[i]]));
      const known = this.#byNumber.get(run.number);
      this.#byNumber.set(run.number, known ? Object.assign(known, run) : { ...run, row: this.#freeRow(run) });
      if (run.ended === null) running.add(run.number);
    }
    for (const [number, run] of this.#byNumber) {
      if (run.ended === null && !running.has(number)) run.ended = snapshot.now;  // its end was not told
      if (run.ended !== null && snapshot.now - run.ended > KEPT_SECONDS + 2) this.#byNumber.delete(number);
    }
  }

  of(worker) {
    return [...this.#byNumber.values()].filter((run) => run.worker === worker);
  }

  ofRequest(request) {
    return [...this.#byNumber.values()].filter((run) => run.request === request);
  }

  #forget() {
    this.#byNumber.clear();
    this.#offset = Infinity;
  }

  /** The lowest place among the worker's slots where nothing else runs at this time. */
  #freeRow(run) {
    const taken = new Set();
    for (const other of this.#byNumber.values()) {
      if (other.worker === run.worker && (other.ended === null || other.ended > run.started)) taken.add(other.row);
    }
    let row = 0;
    while (taken.has(row)) row += 1;
    return row;
  }
}
