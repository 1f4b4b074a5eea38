// @ts-check
// The gateway's API as this page uses it.

import { isFinal } from "./format.js";
import { answered, headers, key } from "./key.js";
import { Stream } from "./stream.js";

/**
 * @typedef {{ percent: number, media_seconds?: number, speed?: number, eta_seconds?: number, source_bytes?: number,
 *   source_bytes_total?: number }} Progress
 * @typedef {{ code: string, detail: string }} JobError
 * @typedef {{ name: string, width: number, height: number, bandwidth: number, average_bandwidth: number, codecs: string,
 *   frame_rate: number, url?: string, mp4?: string }} Rendition
 * @typedef {{ bandwidth: number, codecs: string, channels: number, sample_rate: number, url?: string, mp4?: string }} Sound
 * @typedef {{ hls?: string, dash?: string, poster?: string, thumbnails?: string, duration_s: number, bytes: number,
 *   renditions: Rendition[], audio?: Sound }} Outputs
 * @typedef {{ input_url?: string, input_path?: string, resolutions?: string[], output_format?: string[],
 *   labels?: Record<string, string>, [more: string]: any }} Spec
 * @typedef {object} Job
 * @property {string} job_id
 * @property {string} state
 * @property {string} [phase]
 * @property {Progress} progress
 * @property {string} priority
 * @property {string} pool
 * @property {string} [worker]
 * @property {number} attempt
 * @property {Spec} spec
 * @property {Outputs} [outputs]
 * @property {string} [outputs_until]
 * @property {string[]} [warnings]
 * @property {JobError} [error]
 * @property {boolean} [cancel_requested]
 * @property {string} created_at
 * @property {string} [started_at]
 * @property {string} [finished_at]
 *
 * @typedef {{ upload_url: string, headers?: Record<string, string>, input_path: string, bytes_max: number }} Ticket
 * @typedef {Pick<Job, "job_id" | "state" | "phase" | "progress" | "pool" | "worker" | "attempt" | "error">} JobUpdate
 */

/** How often a job is asked for where events cannot be had, in milliseconds. */
const POLL_MS = 1000;
/** The state of a stream that does not come again. */
const CLOSED = 2;
/** Longest that an answer to a question is waited for: a connection that died unnoticed must not end the asking. */
const ANSWER_MS = 30_000;

/** What went wrong with a request: the API's problem+json, or our own word where nothing answered. */
export class Problem extends Error {
  /** @param {number} status 0 when nothing answered. @param {Record<string, any>} said @param {string | null} [after] */
  constructor(status, said, after) {
    super([said.title, said.detail].filter(Boolean).join(": ") || `the gateway answered ${status}`);
    this.status = status;
    /** @type {string} */
    this.code = said.code ?? "";
    /** @type {string | undefined} */
    this.detail = said.detail;
    /** @type {string | undefined} */
    this.field = said.field;
    const seconds = Number(after ?? said.retry_after_s);
    /** Seconds after which another try makes sense, if it does. */
    this.retryAfter = (after ?? said.retry_after_s) != null && seconds >= 0 ? seconds : null;
  }
}

const unreachable = () => new Problem(0, { code: "unreachable", title: "The gateway does not answer" });

/** @param {number} status @param {string} text @param {string | null} after */
function problem(status, text, after) {
  try {
    const said = JSON.parse(text);
    if (said && typeof said === "object") return new Problem(status, said, after);
  } catch {
    // Something between us and the gateway answered in its own words.
  }
  return new Problem(status, { title: `The answer was ${status}` }, after);
}

/**
 * @param {string} method
 * @param {string} path
 * @param {object} [body]
 * @returns {Promise<any>}
 */
export async function ask(method, path, body) {
  /** @type {Record<string, string>} */
  const sent = { ...headers(), ...(body && { "content-type": "application/json" }) };
  let response;
  let text;
  try {
    // What changes something is waited for as long as the gateway takes: its outcome matters.
    const signal = method === "GET" ? AbortSignal.timeout(ANSWER_MS) : undefined;
    response = await fetch(path, { method, cache: "no-store", signal, headers: sent, body: body && JSON.stringify(body) });
    text = await response.text();
  } catch {
    throw unreachable();
  }
  answered(response.status, sent.authorization);
  if (!response.ok) throw problem(response.status, text, response.headers.get("retry-after"));
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    throw new Problem(response.status, { title: "The answer is no JSON" });
  }
}

/** A new job's id. Given here, every repetition of a submit is the same job, whatever becomes of the answer. */
export function newJobId() {
  const random = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Where to put the bytes. A ticket names an absolute URL; when it is the gateway's own path, this origin serves it,
 * too, under whatever name and scheme the browser reached it.
 * @param {Ticket} ticket
 * @param {string} origin
 */
export function uploadAddress(ticket, origin) {
  const url = new URL(ticket.upload_url, origin);
  const own = url.origin === origin || decodeURIComponent(url.pathname) === `/upload/${ticket.input_path}`;
  return own ? url.pathname + url.search : url.href;
}

/**
 * Sends a file. `fetch` cannot say how much has gone; XMLHttpRequest can.
 * @param {string} url
 * @param {File} file
 * @param {(sent: number, all: number) => void} progress
 * @param {AbortSignal} signal
 * @param {Record<string, string>} [signed] Headers that the URL's signature covers.
 * @returns {Promise<void>}
 */
export function put(url, file, progress, signal, signed = {}) {
  return new Promise((resolve, reject) => {
    const stopped = () => reject(new Problem(0, { code: "stopped", title: "The upload was stopped" }));
    if (signal.aborted) return stopped();
    const request = new XMLHttpRequest();
    request.open("PUT", url);
    // Another origin's permission is in its address, and a key is for this one alone.
    const who = url.startsWith("/") && !url.startsWith("//") ? headers() : {};
    for (const [name, value] of Object.entries({ ...who, ...signed })) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => progress(event.loaded, event.total || file.size);
    request.onload = () => {
      if (request.status < 300) resolve();
      else reject(problem(request.status, request.responseText, request.getResponseHeader("retry-after")));
    };
    request.onerror = () => reject(new Problem(0, { code: "interrupted", title: "The upload was interrupted" }));
    request.onabort = stopped;
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(file);
  });
}

/**
 * Follows a job until it is final: by events, and by asking again and again where there are none.
 * @param {string} id
 * @param {object} told
 * @param {(update: JobUpdate) => void} told.update While it runs.
 * @param {(job: Job) => void} told.job The whole job, at first, at each change of state, and at the end.
 * @param {(problem: Problem | null) => void} told.problem It cannot be read now, or can again.
 * @param {(live: boolean) => void} told.live Whether events come.
 * @returns {() => void} Ends it.
 */
export function follow(id, told) {
  const path = `/jobs/${encodeURIComponent(id)}`;
  let ended = false;
  let timer = 0;
  let asked = 0;
  let events = /** @type {EventSource | Stream | null} */ (null);
  let live = false;
  /** @param {boolean} now */
  const turn = (now) => {
    if (live === now || ended) return;
    live = now;
    told.live(now);
    if (!now) look();
  };
  // A browser has six connections to one origin over HTTP/1.1, in all its tabs together: those that nobody looks at
  // must not hold one each, or the seventh job would stop the rest.
  const seen = () => {
    if (document.hidden) {
      events?.close();
      turn(false);
    } else look();
  };
  const end = () => {
    ended = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", seen);
    events?.close();
  };
  // A stream begins with what was written last, and an answer may be late: neither may take the bar back.
  const farthest = { attempt: 0, percent: 0 };
  /** @param {JobUpdate | Job} now */
  const overtaken = ({ state, attempt, progress }) => {
    const behind = state === "running" && attempt === farthest.attempt && progress.percent < farthest.percent;
    if (behind || (attempt < farthest.attempt && !isFinal(state))) return true;
    Object.assign(farthest, { attempt, percent: progress.percent });
    return false;
  };
  const look = async () => {
    clearTimeout(timer);
    const mine = ++asked;
    let failed = false;
    try {
      const job = await ask("GET", path);
      // What was asked later knows more.
      if (ended || mine !== asked) return;
      told.problem(null);
      if (!overtaken(job)) told.job(job);
      if (isFinal(job.state)) return end();
      // The browser connects again by itself after a broken connection, and gives up after a refusal.
      if (!document.hidden && (!events || events.readyState === CLOSED)) events = listen();
    } catch (failure) {
      if (ended || mine !== asked) return;
      told.problem(/** @type {Problem} */ (failure));
      if (/** @type {Problem} */ (failure).status === 404) return end();
      failed = true;
    }
    // Events do not say again what the answer would have said.
    if (!live || failed) timer = setTimeout(look, document.hidden ? 5 * POLL_MS : POLL_MS);
  };
  const listen = () => {
    const source = key() ? new Stream(`${path}/events`) : new EventSource(`${path}/events`);
    /** @param {Event} event */
    const tell = (event) => {
      const now = JSON.parse(/** @type {MessageEvent} */ (event).data);
      if (!overtaken(now)) told.update(now);
    };
    source.onopen = () => turn(true);
    // Until it is connected again, the job is asked for.
    source.onerror = () => turn(false);
    source.addEventListener("progress", tell);
    source.addEventListener("state", (event) => {
      tell(event);
      look();
    });
    source.addEventListener("end", () => {
      source.close();
      turn(false);
    });
    return source;
  };
  document.addEventListener("visibilitychange", seen);
  look();
  return end;
}
