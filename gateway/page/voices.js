// Voices of your own: add one from a sample, listen to it, delete it. Hidden where the gateway does not offer it.

import { call } from "/page/api.js";
import { make, say } from "/page/words.js";

const $ = (id) => document.getElementById(id);

export class OwnVoices {
  #choices;
  #listen;

  /** `listen(voice)` speaks with a voice. */
  constructor(choices, listen) {
    this.#choices = choices;
    this.#listen = listen;
    $("voice-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#add();
    });
  }

  /** Show what there is, if this gateway takes uploads and a model can use them. */
  show() {
    $("voices").hidden = !(this.#choices.takesUploads && this.#choices.models.some((model) => model.cloning));
    const own = this.#choices.voices.filter((voice) => voice.uploaded);
    $("own-voices").replaceChildren(...own.map((voice) => this.#row(voice)));
  }

  #row(voice) {
    const row = make("li", "", "");
    const listen = make("button", "", "Listen");
    listen.setAttribute("aria-label", `Listen to ${voice.name}`);
    listen.addEventListener("click", () => this.#listen(voice));
    const remove = make("button", "", "Delete");
    remove.setAttribute("aria-label", `Delete ${voice.name}`);
    remove.addEventListener("click", () => this.#remove(voice));
    row.append(make("span", "grow", voice.name), listen, remove);
    return row;
  }

  async #add() {
    const form = new FormData();
    form.append("name", $("voice-name").value);
    form.append("audio_sample", $("voice-sample").files[0]);
    say($("voice-words"), "Uploading …");
    try {
      const voice = await (await call("/v1/voices", { method: "POST", body: form })).json();
      $("voice-form").reset();
      await this.#choices.load();
      this.show();
      const faults = [...voice.warnings.map((warning) => warning.message),
        ...voice.unusable_with.map((fault) => `Not for ${fault.model}: ${fault.reason}`)];
      say($("voice-words"), [`${voice.name} can be chosen now.`, ...faults].join(" "));
    } catch (error) {
      say($("voice-words"), error.message);
    }
  }

  async #remove(voice) {
    try {
      await call(`/v1/voices/${encodeURIComponent(voice.id)}`, { method: "DELETE" });
      await this.#choices.load();
      this.show();
      say($("voice-words"), `${voice.name} is deleted.`);
    } catch (error) {
      say($("voice-words"), error.message);
    }
  }
}
