// The stream of snapshots: one a second, reconnected when it ends, let go while nobody looks at the page.

import { ApiError, call } from "/page/api.js";

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 5000;
const SILENCE_MS = 4000;
const HIDDEN_MS = 30000;

/** Call `on.snapshot(body, isFirst)` for each event, `on.state("live" | "waiting" | "key", words)` for each change. */
export function follow(on) {
  let controller = null;
  let wake = () => {};
  let hiddenTimer = 0;

  async function forever() {
    let pause = FIRST_PAUSE_MS;
    for (;;) {
      if (document.hidden) await new Promise((resolve) => { wake = resolve; });
      try {
        await once(() => { pause = FIRST_PAUSE_MS; });
        on.state("waiting", "the gateway ended the stream");
      } catch (error) {
        const wantsKey = error instanceof ApiError && (error.status === 401 || error.status === 403);
        on.state(wantsKey ? "key" : "waiting", wantsKey ? "a key is needed" : `not connected: ${reason(error)}`);
      }
      await new Promise((resolve) => {
        wake = resolve;
        setTimeout(resolve, pause);
      });
      pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
    }
  }

  async function once(onOpen) {
    controller = new AbortController();
    let watchdog = 0;
    const alive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => controller.abort(new Error("it has gone silent")), SILENCE_MS);
    };
    try {
      alive();
      const response = await call("/v1/live", { signal: controller.signal, cache: "no-store" });
      onOpen();
      for await (const event of events(response.body)) {
        alive();
        on.snapshot(JSON.parse(event.data), event.name === "history");
        on.state("live", "live");
      }
    } finally {
      clearTimeout(watchdog);
      controller.abort();
    }
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiddenTimer);
    if (document.hidden) hiddenTimer = setTimeout(() => controller?.abort(new Error("the page is hidden")), HIDDEN_MS);
    else wake();
  });
  forever();
  return { retry: () => wake() };
}

function reason(error) {
  return error instanceof TypeError ? "the gateway does not answer" : error.message;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const fields = Object.fromEntries(text.slice(0, end).split("\n").map((line) => line.split(/: (.*)/s)));
      yield { name: fields.event, data: fields.data };
    }
  }
}
