// What can be chosen: models, voices, and the tuning that a model heeds. All of it comes from the gateway.

import { getJson } from "/page/api.js";
import { make } from "/page/words.js";

const $ = (id) => document.getElementById(id);

export class Choices {
  models = [];
  voices = [];
  takesUploads = false;
  #ranges = {};
  #key = "";

  constructor() {
    $("model").addEventListener("change", () => this.#showModel());
    $("speed").addEventListener("input", () => {
      $("speed-words").textContent = `${Number($("speed").value).toFixed(2)}×`;
    });
  }

  /** Ask again when the fleet speaks other models than before; say whether it did. */
  async follow(snapshot) {
    const key = JSON.stringify([...new Set(snapshot.workers.flatMap((worker) => worker.models))].sort());
    if (key === this.#key) return false;
    this.#key = key;
    try {
      await this.load();
      return true;
    } catch {
      this.#key = "";  // the next snapshot tries again
      return false;
    }
  }

  async load() {
    const [models, voices, description] = await Promise.all([
      getJson("/v1/models"), getJson("/v1/voices"), getJson("/openapi.json"),
    ]);
    this.models = models.data;
    this.voices = voices.voices;
    this.takesUploads = voices.uploads;
    this.#ranges = description.components.schemas.SpeechRequest.properties;
    const before = $("model").value;
    $("model").replaceChildren(...this.models.map((model) => new Option(model.id, model.id)));
    if (this.models.some((model) => model.id === before)) $("model").value = before;
    this.#showModel();
  }

  get model() {
    return this.models.find((model) => model.id === $("model").value);
  }

  sampleRate(id) {
    return this.models.find((model) => model.id === id)?.sample_rate ?? 24000;
  }

  /** The body of the request, as it is chosen; what is left at its default is left out. */
  request() {
    const body = { text: $("text").value, voice: $("voice").value, model: $("model").value, format: $("format").value };
    for (const name of ["voice", "model"]) if (!body[name]) delete body[name];
    if (Number($("speed").value) !== 1) body.speed = Number($("speed").value);
    if (!$("language-label").hidden) body.language = $("language").value;
    for (const input of $("tuning").querySelectorAll("input")) {
      if (input.value !== "") body[input.id === "seed" ? "seed" : input.dataset.name] = Number(input.value);
    }
    return body;
  }

  choose(voice) {
    if (voice.model) $("model").value = voice.model;
    this.#showModel();
    $("voice").value = voice.id;
  }

  #showModel() {
    const model = this.model;
    const before = $("voice").value;
    const mine = this.voices.filter((voice) => model && voice.models.includes(model.id));
    const others = make("optgroup");
    others.label = "other names";
    others.append(...mine.filter((voice) => voice.alias_of)
      .map((voice) => new Option(`${voice.id} (${voice.alias_of})`, voice.id)));
    $("voice").replaceChildren(
      ...mine.filter((voice) => !voice.alias_of).map((voice) => new Option(voice.name, voice.id)),
      ...(others.children.length ? [others] : []),
    );
    if (mine.some((voice) => voice.id === before)) $("voice").value = before;
    const languages = model?.languages ?? [];
    $("language-label").hidden = languages.length < 2;
    $("language").replaceChildren(...languages.map((code) => new Option(code, code)));
    for (const label of $("tuning").querySelectorAll(".of-model")) label.remove();
    for (const name of (model?.parameters ?? []).filter((parameter) => parameter !== "speed")) {
      $("tuning").append(parameterLabel(name, this.#ranges[name] ?? {}));
    }
  }
}

function parameterLabel(name, range) {
  const label = make("label", "of-model", `${name.replaceAll("_", " ")} `);
  const input = make("input");
  Object.assign(input, { type: "number", step: "any", placeholder: "default" });
  if (range.minimum !== undefined) input.min = range.minimum;
  if (range.maximum !== undefined) input.max = range.maximum;
  input.dataset.name = name;
  label.append(input);
  return label;
}
