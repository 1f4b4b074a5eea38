// @ts-check
// Events for who asks with a key: an EventSource cannot send one. As much of it as this page uses.

import { answered, headers } from "./key.js";

/** How long until it connects again, in milliseconds, if the events do not say. */
const RETRY_MS = 2000;
/** Longest line that is kept: an event of a job is far shorter. */
const LINE_MAX = 1 << 20;

export class Stream extends EventTarget {
  /** As in an EventSource: it comes again after a broken connection, and is closed after a refusal. */
  readyState = 0;
  onopen = () => {};
  onerror = () => {};
  #stop = new AbortController();
  #retry = RETRY_MS;
  #last = "";
  #event = "";
  /** @type {string[]} */
  #data = [];

  /** @param {string} url */
  constructor(url) {
    super();
    this.url = url;
    this.#run();
  }

  close() {
    this.readyState = 2;
    this.#stop.abort();
  }

  async #run() {
    while (this.readyState !== 2) {
      try {
        await this.#read();
      } catch {
        // The connection broke, or was closed here.
      }
      if (/** @type {number} */ (this.readyState) === 2) return;
      this.readyState = 0;
      this.onerror();
      await new Promise((resolve) => setTimeout(resolve, this.#retry));
    }
  }

  async #read() {
    const last = this.#last ? { "last-event-id": this.#last } : {};
    const asked = { accept: "text/event-stream", ...headers(), ...last };
    const response = await fetch(this.url, { cache: "no-store", headers: asked, signal: this.#stop.signal });
    answered(response.status, asked.authorization);
    if (response.status !== 200 || !response.body) {
      this.readyState = 2;
      this.onerror();
      return;
    }
    this.readyState = 1;
    this.onopen();
    const [reader, decoder] = [response.body.getReader(), new TextDecoder()];
    let rest = "";
    this.#event = "";
    this.#data = [];
    for (;;) {
      const { value, done } = await reader.read();
      if (done || this.readyState === 2) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop() ?? "";
      if (rest.length > LINE_MAX) throw new Error("an event without an end");
      for (const line of lines) this.#take(line);
    }
  }

  /** @param {string} line */
  #take(line) {
    if (!line) {
      const [kind, data] = [this.#event || "message", this.#data.join("\n")];
      if (this.#data.length) this.dispatchEvent(Object.assign(new Event(kind), { data }));
      [this.#event, this.#data] = ["", []];
      return;
    }
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "event") this.#event = value;
    else if (name === "data") this.#data.push(value);
    else if (name === "id" && !value.includes("\0")) this.#last = value;
    else if (name === "retry" && /^\d+$/.test(value)) this.#retry = Number(value);
  }
}
