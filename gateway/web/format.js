// @ts-check
// Numbers in words. Everything here is a pure function.

/** @typedef {import("./api.js").Job} Job */

/** What people read for a state of the API. @type {Record<string, string>} */
export const STATES = {
  queued: "waiting",
  running: "running",
  retry_wait: "to be tried again",
  succeeded: "done",
  failed: "failed",
  cancelled: "cancelled",
  dead: "given up",
};

/** What a running job is at, in order. @type {Record<string, string>} */
export const PHASES = { source: "fetching", probing: "reading", encoding: "encoding", publishing: "publishing" };

/** @param {string} state */
export const isFinal = (state) => ["succeeded", "failed", "cancelled", "dead"].includes(state);

/** @param {number} n */
export function bytes(n) {
  if (!(n >= 0)) return "";
  const units = ["B", "KB", "MB", "GB", "TB"];
  let place = 0;
  while (n >= 999.5 && place < units.length - 1) {
    n /= 1000;
    place += 1;
  }
  return `${place === 0 || n >= 99.5 ? n.toFixed(0) : n.toFixed(1)} ${units[place]}`;
}

/** A place in a video: `1:05`, `1:02:03`. @param {number} s */
export function clock(s) {
  const whole = Math.max(0, Math.floor(s || 0));
  const [h, m, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, String(whole % 60).padStart(2, "0")];
  return h > 0 ? `${h}:${String(m).padStart(2, "0")}:${rest}` : `${m}:${rest}`;
}

/** How long something takes: `0.4 s`, `12 s`, `3 min`, `2 h 5 min`. @param {number} s */
export function span(s) {
  if (!(s >= 0)) return "";
  if (s < 9.95) return `${s.toFixed(1).replace(".0", "")} s`;
  if (s < 99.5) return `${Math.round(s)} s`;
  const minutes = Math.round(s / 60);
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h${minutes % 60 ? ` ${minutes % 60} min` : ""}`;
}

/** @param {number} bits Bits per second. */
export function bitrate(bits) {
  return bits >= 1e6 ? `${(bits / 1e6).toFixed(1)} Mbit/s` : `${Math.round(bits / 1e3)} kbit/s`;
}

/** @param {number} share 0–1 */
export function percent(share) {
  const n = share * 100;
  return `${n > 0 && n < 1 ? "<1" : Math.round(n)}\u00a0%`;
}

/** Media seconds per second. @param {number} n */
export const speed = (n) => `${n.toFixed(n < 10 ? 1 : 0)}×`;

/** @param {string} at RFC 3339 @param {number} now Milliseconds. */
export function ago(at, now) {
  const s = (now - Date.parse(at)) / 1000;
  if (Number.isNaN(s)) return "";
  if (s < 10) return "now";
  return s < 86400 ? `${span(s)} ago` : new Date(at).toLocaleDateString();
}

/** How much of a source is here: `fetched 12 MB of 80 MB`; empty where nobody knows. @param {Job["progress"]} progress */
export function fetched({ source_bytes: here, source_bytes_total: all }) {
  if (here == null) return "";
  return `fetched ${bytes(here)}${all != null && all >= here ? ` of ${bytes(all)}` : ""}`;
}

/** What turns the direction of the text around it: `\u202egpm.exe` would read `exe.mpg`. */
const TURNS = /[\u202a-\u202e\u2066-\u2069]/g;

/** What to call a job: the name that the page gave it, else the last part of its input. @param {Job} job */
export const title = (job) => called(job).replace(TURNS, "") || job.job_id;

/** @param {Job} job */
function called(job) {
  const named = job.spec.labels?.filename;
  if (named) return named;
  const input = job.spec.input_path ?? job.spec.input_url ?? "";
  const last = input.split(/[?#]/)[0].split("/").filter(Boolean).pop();
  try {
    return decodeURIComponent(last ?? "") || job.job_id;
  } catch {
    return last || job.job_id;
  }
}

/** Cuts a text to so many bytes of UTF-8, at a character. @param {string} text @param {number} max */
export function cut(text, max) {
  let kept = "";
  let used = 0;
  for (const character of text) {
    used += new TextEncoder().encode(character).length;
    if (used > max) return kept;
    kept += character;
  }
  return kept;
}

/** What there is instead of a player where a job's files are kept no longer. @param {Job} job */
export function gone({ state, outputs, outputs_until: since }) {
  if (state !== "succeeded" || outputs) return "";
  return since ? `Its files are gone since ${new Date(since).toLocaleString()}.` : "Its files are gone.";
}

/**
 * Where a job stands, in one line.
 * @param {Pick<Job, "state" | "phase" | "progress">} job
 */
export function standing(job) {
  if (job.state !== "running") return STATES[job.state] ?? job.state;
  const has = job.phase === "source" ? fetched(job.progress) : "";
  const parts = [has || (PHASES[job.phase ?? ""] ?? "running")];
  if (job.phase === "encoding") parts.push(percent(job.progress.percent / 100));
  if (job.progress.speed) parts.push(speed(job.progress.speed));
  if (job.progress.eta_seconds != null) parts.push(`${span(Math.ceil(job.progress.eta_seconds))} left`);
  return parts.join(" · ");
}
