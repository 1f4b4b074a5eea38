// @ts-check
// One job: its progress as it runs, then its player and its files.

import { ask, follow } from "./api.js";
import { advance, announce, byId, complain, copyButton, element, say } from "./elements.js";
import { PHASES, STATES, bitrate, bytes, clock, fetched, gone, isFinal, percent, span, speed, title } from "./format.js";
import { mountPlayer } from "./player.js";

/** @typedef {import("./api.js").Job} Job @typedef {import("./api.js").JobUpdate} JobUpdate */

let close = () => {};

/** Opens the job of that id in its panel, or closes the panel. @param {string | null} id @param {() => void} changed */
export function openJob(id, changed) {
  if (id != null && byId("job").dataset.jobId === id) return;
  close();
  close = () => {};
  const panel = byId("job");
  panel.hidden = id == null;
  panel.replaceChildren();
  delete panel.dataset.jobId;
  delete panel.dataset.state;
  if (id == null) return;
  panel.dataset.jobId = id;
  close = show(panel, id, changed);
  panel.scrollIntoView({ block: "nearest" });
}

/** @param {HTMLElement} panel @param {string} id @param {() => void} changed */
function show(panel, id, changed) {
  const name = element("h2", { id: "job-title", dir: "auto" }, "Job");
  const state = element("span", { class: "state" });
  const error = element("p", { class: "error", role: "alert", hidden: true });
  const trouble = element("p", { class: "error", role: "status", hidden: true });
  const bar = element("progress", { max: 100, "data-testid": "job-progress" });
  const share = element("b", { class: "share" });
  const phases = Object.entries(PHASES).map(([phase, word]) => element("li", { "data-phase": phase }, word));
  const here = element("span", {});
  const rate = element("span", {});
  const left = element("span", {});
  const way = element("span", { class: "hint" });
  const stop = element("button", { type: "button" }, "Cancel the job");
  const running = element("div", { class: "running", hidden: true },
    element("ol", { class: "phases" }, ...phases),
    element("div", { class: "meter" }, bar, share),
    element("p", { class: "line" }, here, rate, left, way),
    stop);
  const facts = element("dl", { class: "facts" });
  const warnings = element("ul", { class: "warnings", hidden: true });
  const result = element("div", {});
  panel.append(
    element("div", { class: "bar" }, name, state, element("a", { class: "close", href: "#", "aria-label": "Close the job" }, "Close")),
    error, trouble, running, result, warnings, facts);

  let player = /** @type {{ end: () => void } | null} */ (null);
  let before = "";

  /** @param {JobUpdate | Job} now */
  const update = (now) => {
    panel.dataset.state = now.state;
    state.dataset.state = now.state;
    say(state, STATES[now.state] ?? now.state);
    if (before && before !== now.state) {
      announce(`The job is ${STATES[now.state] ?? now.state}`);
      changed();
    }
    before = now.state;
    const { percent: done, speed: fast, eta_seconds: eta } = now.progress;
    running.hidden = isFinal(now.state);
    const known = now.state === "running" && now.phase === "encoding";
    const source = now.state === "running" && now.phase === "source" ? fetched(now.progress) : "";
    advance(bar, known ? done : now.state === "running" ? null : 0, "Progress of the job");
    say(here, source);
    say(share, known ? percent(done / 100) : "");
    say(rate, known && fast ? speed(fast) : "");
    say(left, known && eta != null ? `${span(Math.ceil(eta))} left` : "");
    const order = Object.keys(PHASES);
    const at = now.state === "running" ? order.indexOf(now.phase ?? "source") : -1;
    phases.forEach((item, place) => {
      item.className = place < at ? "past" : place === at ? "now" : "";
      if (place === at) item.setAttribute("aria-current", "step");
      else item.removeAttribute("aria-current");
    });
    const failed = now.error && now.state !== "succeeded" && now.state !== "cancelled";
    // A job that is tried again still has the error of the attempt before.
    const what = isFinal(now.state) ? "Failed" : "An attempt failed, and the job is tried again";
    complain(error, failed ? `${what}: ${now.error?.detail} (${now.error?.code})` : "");
    fact("Pool", now.pool);
    fact("Worker", now.worker ?? "");
    fact("Attempt", now.attempt ? String(now.attempt) : "");
  };
  /** @type {Map<string, HTMLElement>} */
  const known = new Map();
  /** @param {string} term @param {string} value */
  const fact = (term, value) => {
    let place = known.get(term);
    if (!place) {
      place = element("dd");
      known.set(term, place);
      facts.append(element("div", {}, element("dt", {}, term), place));
    }
    say(place, value);
    if (place.parentElement) place.parentElement.hidden = !value;
  };
  /** @param {Job} job */
  const whole = (job) => {
    say(name, title(job));
    update(job);
    stop.disabled = job.cancel_requested === true;
    say(stop, job.cancel_requested ? "Is being cancelled" : "Cancel the job");
    fact("Input", job.spec.input_url ?? "");
    fact("Created", new Date(job.created_at).toLocaleString());
    if (job.started_at && job.finished_at) {
      fact("Took", span((Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000));
    }
    if (job.outputs) {
      fact("Length", clock(job.outputs.duration_s));
      fact("Renditions", job.outputs.renditions.map((one) => `${one.name} ${bitrate(one.average_bandwidth)}`).join(", "));
      fact("Size of all files", bytes(job.outputs.bytes));
    }
    fact("Job id", job.job_id);
    warnings.hidden = !job.warnings?.length;
    warnings.replaceChildren(...(job.warnings ?? []).map((text) => element("li", {}, text)));
    const nothing = gone(job);
    if (nothing) result.replaceChildren(element("p", { class: "hint" }, nothing));
    if (job.state === "succeeded" && job.outputs && !player) {
      const place = element("div", { class: "player" });
      result.replaceChildren(place, files(job));
      player = mountPlayer(place, job, job.outputs);
    }
  };
  stop.addEventListener("click", async () => {
    stop.disabled = true;
    try {
      whole(await ask("DELETE", `/jobs/${encodeURIComponent(id)}`));
      complain(trouble);
    } catch (problem) {
      complain(trouble, /** @type {Error} */ (problem).message);
      stop.disabled = false;
    }
  });
  const end = follow(id, {
    update,
    job: whole,
    problem: (problem) => {
      const lost = problem && problem.status !== 404;
      complain(trouble, problem ? `${problem.message}.${lost ? " Asks again." : ""}` : "");
    },
    live: (live) => say(way, live ? "live" : ""),
  });
  return () => {
    end();
    player?.end();
  };
}

/** The addresses of what came out. @param {Job} job */
function files(job) {
  const outputs = /** @type {import("./api.js").Outputs} */ (job.outputs);
  const list = element("dl", { class: "files" });
  /** @param {string} what @param {string | undefined} path @param {boolean} [saves] */
  const add = (what, path, saves = false) => {
    if (!path) return;
    const address = new URL(path, location.href).href;
    list.append(element("dt", {}, what), element("dd", {},
      element("a", { href: path, download: saves }, path), copyButton(address, what)));
  };
  add("HLS", outputs.hls);
  add("DASH", outputs.dash);
  for (const rendition of outputs.renditions) add(`MP4 ${rendition.name}`, rendition.mp4, true);
  add("Sound", outputs.audio?.mp4, true);
  const first = outputs.hls ?? outputs.renditions[0]?.mp4 ?? outputs.audio?.mp4;
  if (first) {
    const line = `ffplay '${new URL(first, location.href).href}'`;
    list.append(element("dt", {}, "Shell"), element("dd", {}, element("code", {}, line), copyButton(line, "the shell line")));
  }
  return element("div", { class: "outputs" }, list);
}
