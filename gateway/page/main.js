// Puts the page together. Each part has a file of its own; they meet only here.

import { hasKey, keepKey, whenKeyWanted } from "/page/api.js";
import { Choices } from "/page/choices.js";
import { Fleet } from "/page/fleet.js";
import { showLine } from "/page/line.js";
import { follow } from "/page/live.js";
import { Runs } from "/page/runs.js";
import { Speaker } from "/page/speak.js";
import { OwnVoices } from "/page/voices.js";
import { make, say, seconds, uptime } from "/page/words.js";

const $ = (id) => document.getElementById(id);

const runs = new Runs();
const choices = new Choices();
const speaker = new Speaker(choices, runs);
const own = (request) => request === speaker.request;
const fleet = new Fleet($("workers"), $("tip"), runs, own);
const voices = new OwnVoices(choices, (voice) => {
  choices.choose(voice);
  speaker.speak();
});

const live = follow({
  snapshot(body) {
    runs.take(body);
    fleet.take(body);
    const place = showLine($("line-words"), $("line"), body.queue, own);
    speaker.take(body, place);
    showFigures(body);
    choices.follow(body).then((isNew) => isNew && voices.show());
  },
  state(state, words) {
    $("link").dataset.state = state;
    say($("link-words"), words);
  },
});

whenKeyWanted((message) => {
  const isNew = $("key-form").hidden;
  $("key-form").hidden = false;
  if (isNew) $("key").focus();  // only now: what is hidden cannot have it
  if (hasKey()) say($("key-words"), message);
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey($("key").value.trim());
  $("key-form").hidden = true;
  live.retry();
});

function showFigures(body) {
  const { traffic } = body;
  say($("version"), body.version);
  $("version").title = `up for ${uptime(body.uptime_seconds)}`;
  say($("summary"), body.summary);
  document.title = body.summary;
  const last = traffic.last_minute;
  const bad = [["failed", last.failed], ["refused", last.refused]].filter(([, number]) => number > 0);
  const told = bad.length ? bad.map(([name, number]) => `${number} ${name}`).join(", ") : "none failed";
  const figures = [
    ["speaks", `${traffic.speed.toFixed(traffic.speed < 10 ? 1 : 0)}×`, "real time"],
    ["requests", traffic.requests_per_second.toFixed(1), "a second"],
    ["first audio", seconds(traffic.first_audio_p50_seconds), `p95 ${seconds(traffic.first_audio_p95_seconds)}`],
    ["last minute", String(last.ok), `spoken, ${told}`],
  ];
  $("figures").replaceChildren(...figures.map(([name, figure, beside]) => {
    const group = make("div");
    group.append(make("dt", "", name), make("dd", "", figure), make("dd", "faint", beside));
    return group;
  }));
}
