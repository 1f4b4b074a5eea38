// @ts-check
// Choosing, sending and submitting: files one after the other, a URL beside them.

import { Problem, ask, newJobId, put, uploadAddress } from "./api.js";
import { advance, announce, byId, complain, element, say } from "./elements.js";
import { bytes, cut, percent, span } from "./format.js";

/** @typedef {import("./api.js").Spec} Spec @typedef {import("./api.js").Job} Job */

/** Longest value of a label, in bytes; a file's name becomes one. */
const LABEL_BYTES_MAX = 256;
/** How long an accepted item is still shown, in milliseconds; its job is in the list by then. */
const ACCEPTED_MS = 4000;
/** Statuses after which the same submit makes sense later, if the answer says when. */
const LATER = [429, 503];

/** One file, or one URL, on its way to becoming a job. */
class Item {
  /** Chosen, to be sent with the options it was submitted with, on its way, to be tried again, gone. @type {"ready" | "waiting" | "busy" | "stuck" | "done"} */
  state = "ready";
  jobId = newJobId();
  /** The stored upload's path; kept, so that a refused submit does not upload again. @type {string | null} */
  path = null;
  stop = new AbortController();

  /**
   * @param {{ file?: File, url?: string }} input
   * @param {() => void} changed
   * @param {(item: Item) => void} again
   */
  constructor(input, changed, again) {
    this.file = input.file;
    this.url = input.url;
    /** @type {Spec} */
    this.options = {};
    const name = this.file?.name ?? this.url ?? "";
    this.name = name;
    this.bar = element("progress", { max: 100, value: 0, "data-testid": "upload-progress", hidden: true });
    this.said = element("span", { class: "said" }, this.file ? bytes(this.file.size) : "");
    this.error = element("p", { class: "error", role: "alert", hidden: true });
    this.retry = element("button", { type: "button", hidden: true, onclick: () => again(this) }, "Try again");
    this.remove = element("button", { type: "button", "aria-label": `Remove ${name}` }, "Remove");
    this.remove.addEventListener("click", () => {
      this.stop.abort();
      this.state = "done";
      this.row.remove();
      changed();
    });
    this.row = element("li", {},
      element("div", { class: "what" }, element("b", { dir: "auto" }, name), this.said),
      this.bar, this.error,
      element("div", { class: "does" }, this.retry, this.remove));
  }

  /** @param {string} text */
  say(text) {
    say(this.said, text);
  }

  /** @param {Problem} problem */
  stuck(problem) {
    this.state = "stuck";
    this.bar.hidden = true;
    this.say("");
    complain(this.error, problem.message);
    this.retry.hidden = false;
  }
}

/** Waits, and says how long still. @param {number} seconds @param {AbortSignal} signal @param {(left: number) => void} left */
function wait(seconds, signal, left) {
  const end = Date.now() + seconds * 1000;
  return /** @type {Promise<void>} */ (new Promise((resolve) => {
    const tick = () => {
      const rest = Math.ceil((end - Date.now()) / 1000);
      if (rest <= 0 || signal.aborted) return resolve();
      left(rest);
      setTimeout(tick, 250);
    };
    tick();
  }));
}

/**
 * Asks until the answer is not "come back later".
 * @param {Item} item
 * @param {string} path
 * @param {object} body
 */
async function askPatiently(item, path, body) {
  for (let attempt = 2; ; attempt += 1) {
    try {
      return await ask("POST", path, body);
    } catch (failure) {
      const problem = /** @type {Problem} */ (failure);
      if (!LATER.includes(problem.status) || problem.retryAfter == null || item.stop.signal.aborted) throw problem;
      await wait(Math.max(1, problem.retryAfter), item.stop.signal, (left) => {
        item.say(`${problem.message.split(":")[0]}. Asks again in ${left} s (try ${attempt}).`);
      });
      if (item.stop.signal.aborted) throw problem;
    }
  }
}

/** @param {Item} item */
async function upload(item) {
  const file = /** @type {File} */ (item.file);
  item.say("asks for a place");
  // Only these types are taken as they are; the worker looks into the file anyway.
  const type = file.type.startsWith("video/") ? file.type : "application/octet-stream";
  const asked = { filename: cut(file.name, 500), content_type: type };
  const ticket = await askPatiently(item, "/upload/request", asked);
  if (file.size > ticket.bytes_max) {
    const title = `${bytes(file.size)} are too many; an upload here has at most ${bytes(ticket.bytes_max)}`;
    throw new Problem(413, { code: "upload_too_large", title });
  }
  item.bar.hidden = false;
  const started = performance.now();
  await put(uploadAddress(ticket, location.origin), file, (sent, all) => {
    const share = all > 0 ? sent / all : 1;
    advance(item.bar, share * 100, `Upload of ${item.name}`);
    const rate = sent / ((performance.now() - started) / 1000);
    const left = rate > 0 && share < 1 ? `, ${span(Math.ceil((all - sent) / rate))} left` : "";
    item.say(share < 1 ? `${percent(share)} of ${bytes(all)}, ${bytes(rate)}/s${left}` : "is being stored");
  }, item.stop.signal, ticket.headers);
  item.path = ticket.input_path;
}

/** @param {Item} item @returns {Promise<Job>} */
async function submit(item) {
  if (item.file && !item.path) await upload(item);
  if (item.stop.signal.aborted) throw new Problem(0, { code: "stopped", title: "Stopped" });
  item.say("submits the job");
  const input = item.file
    ? { input_path: item.path, size_hint_bytes: item.file.size, labels: { filename: cut(item.name, LABEL_BYTES_MAX) } }
    : { input_url: item.url };
  return askPatiently(item, "/jobs", { job_id: item.jobId, ...input, ...item.options });
}

/** What the options ask for; what is left at its default is left out. @param {HTMLFormElement} form @returns {Spec} */
export function readOptions(form) {
  const data = new FormData(form);
  /** @type {Spec} */
  const spec = {};
  const resolutions = data.getAll("resolutions").map(String);
  const formats = data.getAll("output_format").map(String);
  const segment = String(data.get("segment_seconds") ?? "");
  const priority = String(data.get("priority"));
  if (resolutions.length) spec.resolutions = resolutions;
  if (formats.length && formats.join() !== "hls") spec.output_format = formats;
  if (segment) spec.segment_seconds = Number(segment);
  if (priority !== "normal") spec.priority = priority;
  return spec;
}

/** @param {{ accepted: (job: Job) => void }} told */
export function startSubmit(told) {
  const form = /** @type {HTMLFormElement} */ (byId("submit-form"));
  const [drop, files, url, queue, missing] = ["drop", "files", "url", "queue", "submit-error"].map(byId);
  const button = /** @type {HTMLButtonElement} */ (form.querySelector("button.primary"));
  const slots = [...form.querySelectorAll("[data-of]")].map((box) => {
    const slot = element("p", { class: "error", role: "alert", hidden: true });
    box.append(slot);
    return /** @type {const} */ ([box.getAttribute("data-of"), slot]);
  });
  /** @type {Item[]} */
  let items = [];
  let sending = false;

  const changed = () => {
    items = items.filter((item) => item.state !== "done");
    const ready = items.filter((item) => item.state === "ready").length + (url.value.trim() ? 1 : 0);
    say(button, ready > 1 ? `Transcode ${ready} videos` : "Transcode");
  };
  /** Errors of fields stand next to them. @param {Problem} [problem] @returns {boolean} Whether it has a place. */
  const place = (problem) => {
    let placed = false;
    for (const [field, slot] of slots) {
      const here = problem != null && field === problem.field;
      complain(slot, here ? problem.detail || problem.message : "");
      if (here && slot.closest("details")) byId("options").open = true;
      placed ||= here;
    }
    url.setAttribute("aria-invalid", String(problem?.field === "input_url"));
    return placed;
  };
  /** @param {Item} item */
  const again = (item) => {
    complain(item.error);
    place();
    item.retry.hidden = true;
    item.stop = new AbortController();
    item.options = readOptions(form);
    send(item);
  };
  /** @param {{ file?: File, url?: string }} input */
  const add = (input) => {
    const item = new Item(input, changed, again);
    items.push(item);
    queue.append(item.row);
    changed();
    return item;
  };
  /** @param {Item} item */
  const send = async (item) => {
    item.state = "busy";
    say(item.remove, "Stop");
    try {
      const job = await submit(item);
      item.say(`accepted by ${job.pool}`);
      announce(`${item.name} was accepted by ${job.pool}`);
      item.state = "done";
      item.remove.hidden = true;
      if (url.value.trim() === item.url) url.value = "";
      setTimeout(() => item.row.remove(), ACCEPTED_MS);
      told.accepted(job);
    } catch (failure) {
      if (item.stop.signal.aborted) return;
      const problem = failure instanceof Problem ? failure : new Problem(0, { title: String(failure) });
      if (place(problem) && !item.file) {
        // The URL is still in its field, and the error beside it.
        item.state = "done";
        item.row.remove();
        url.focus();
      } else {
        item.stuck(problem);
        say(item.remove, "Remove");
      }
      // The same id with other options would be a conflict, unless nothing was accepted under it.
      if (problem.code === "job_conflict") item.jobId = newJobId();
    } finally {
      changed();
    }
  };
  const sendAll = async () => {
    // URLs need no upload and do not wait for one.
    for (const item of items.filter((item) => item.state === "waiting" && item.url)) send(item);
    if (sending) return;
    sending = true;
    for (;;) {
      const next = items.find((item) => item.state === "waiting" && item.file);
      if (!next) break;
      await send(next);
    }
    sending = false;
  };

  /** @param {Iterable<File>} chosen */
  const choose = (chosen) => {
    complain(missing);
    for (const file of chosen) add({ file });
  };
  files.addEventListener("change", () => {
    choose(files.files);
    files.value = "";
  });
  form.addEventListener("input", () => {
    place();
    complain(missing);
    changed();
  });
  let over = 0;
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    window.addEventListener(name, (event) => {
      const drag = /** @type {DragEvent} */ (event);
      if (!drag.dataTransfer?.types.includes("Files")) return;
      // A file that misses the box must not replace the page.
      drag.preventDefault();
      if (name === "dragenter") over += 1;
      if (name === "dragleave") over -= 1;
      if (name === "drop") {
        over = 0;
        choose(drag.dataTransfer.files);
      }
      drop.classList.toggle("over", over > 0);
    });
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    place();
    const pasted = url.value.trim();
    if (pasted && !items.some((item) => item.url === pasted && item.state !== "done")) add({ url: pasted });
    const ready = items.filter((item) => item.state === "ready");
    if (!ready.length && !sending) {
      complain(missing, items.length ? "" : "Choose a file, or paste a URL.");
      return;
    }
    complain(missing);
    for (const item of ready) {
      item.options = readOptions(form);
      item.state = "waiting";
      if (sending && item.file) item.say(`${bytes(item.file.size)}, waits for its turn`);
    }
    sendAll();
    changed();
  });
  window.addEventListener("beforeunload", (event) => {
    if (items.some((item) => ["waiting", "busy"].includes(item.state) && item.file)) event.preventDefault();
  });
}
