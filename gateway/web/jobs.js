// @ts-check
// The list of jobs, kept up to date.

import { ask } from "./api.js";
import { advance, byId, complain, element, say } from "./elements.js";
import { STATES, ago, clock, isFinal, standing, title } from "./format.js";

/** @typedef {import("./api.js").Job} Job */

/** Jobs per page. */
const PAGE = 12;
/** How soon the list is asked for again, in milliseconds: while something moves, and while nothing does. */
const [MOVING_MS, STILL_MS] = [1500, 5000];
/** After which a picture that could not be loaded is tried again, in milliseconds. */
const PICTURE_MS = 30_000;

/** One job of the list. */
class Card {
  /** @param {Job} job */
  constructor(job) {
    this.picture = element("div", { class: "picture" });
    this.name = element("b", { class: "title", dir: "auto" });
    this.state = element("span", { class: "state" });
    this.where = element("span", { class: "hint" });
    this.bar = element("progress", { max: 100, "data-testid": "job-progress" });
    this.link = element("a", { href: `#job/${job.job_id}` },
      this.picture, this.name, element("span", { class: "line" }, this.state, this.where), this.bar);
    this.row = element("li", { class: "card", "data-testid": "job-card", "data-job-id": job.job_id }, this.link);
    /** Kept once it is shown: each answer may sign the same picture anew. @type {HTMLImageElement | null} */
    this.image = null;
    this.show(job);
  }

  /** @param {Job} job */
  show(job) {
    const name = title(job);
    this.row.dataset.state = job.state;
    say(this.name, name);
    this.name.title = name;
    say(this.state, standing(job));
    say(this.where, [job.worker ?? job.pool, ago(job.created_at, Date.now())].join(" · "));
    this.bar.hidden = isFinal(job.state);
    const known = job.state === "running" && job.phase === "encoding";
    advance(this.bar, known ? job.progress.percent : job.state === "running" ? null : 0, `Progress of ${name}`);
    const poster = job.outputs?.poster;
    if (poster && !this.image) {
      const image = element("img", { src: poster, alt: "", loading: "lazy", decoding: "async" });
      image.addEventListener("error", () => {
        image.remove();
        // Its address may only have been too old: a later answer has a new one.
        setTimeout(() => (this.image = null), PICTURE_MS);
      });
      this.image = image;
      this.picture.append(image);
    }
    if (job.outputs && !this.picture.querySelector(".length")) {
      this.picture.append(element("span", { class: "length" }, clock(job.outputs.duration_s)));
    }
    this.picture.classList.toggle("sound", job.outputs != null && !job.outputs.renditions.length);
  }
}

/** Starts the list. @returns {{ refresh: () => void, mark: (id: string | null) => void, has: (one: Element | null) => boolean, focus: (id: string) => void }} */
export function startJobs() {
  const [list, none, state, newer, older, error] =
    ["jobs-list", "jobs-none", "jobs-state", "jobs-newer", "jobs-older", "jobs-error"].map(byId);
  /** @type {Map<string, Card>} */
  const cards = new Map();
  /** Cursors of the pages before this one; the first page has none. @type {string[]} */
  let cursors = [];
  let next = /** @type {string | undefined} */ (undefined);
  let open = /** @type {string | null} */ (null);
  let timer = 0;
  let asked = 0;

  state.append(...Object.entries(STATES).map(([value, word]) => element("option", { value }, word)));
  const mark = () => {
    for (const [id, card] of cards) {
      if (id === open) card.link.setAttribute("aria-current", "true");
      else card.link.removeAttribute("aria-current");
    }
  };
  /** @param {Job[]} jobs */
  const show = (jobs) => {
    const gone = new Set(cards.keys());
    jobs.forEach((job, place) => {
      gone.delete(job.job_id);
      const card = cards.get(job.job_id) ?? new Card(job);
      if (cards.has(job.job_id)) card.show(job);
      cards.set(job.job_id, card);
      // Moved only if it must be: what has the focus would lose it.
      if (list.children[place] !== card.row) list.insertBefore(card.row, list.children[place] ?? null);
    });
    for (const id of gone) {
      cards.get(id)?.row.remove();
      cards.delete(id);
    }
    none.hidden = jobs.length > 0;
    const chosen = STATES[state.value];
    say(none, chosen ? `No job is ${chosen}.` : "No jobs yet. Choose a video, and it will appear here.");
    newer.hidden = cursors.length === 0;
    older.hidden = !next;
    mark();
  };
  const look = async () => {
    clearTimeout(timer);
    const mine = ++asked;
    const query = new URLSearchParams({ limit: String(PAGE) });
    if (state.value) query.set("status", state.value);
    if (cursors.length) query.set("cursor", cursors[cursors.length - 1]);
    let moving = false;
    try {
      const page = await ask("GET", `/jobs?${query}`);
      // Another look was begun since, maybe for another page.
      if (mine !== asked) return;
      next = page.next_cursor;
      show(page.jobs);
      complain(error);
      moving = page.jobs.some((/** @type {Job} */ job) => !isFinal(job.state));
    } catch (problem) {
      if (mine !== asked) return;
      complain(error, `The list is not up to date. ${/** @type {Error} */ (problem).message}.`);
    }
    if (!document.hidden) timer = setTimeout(look, moving ? MOVING_MS : STILL_MS);
  };

  state.addEventListener("change", () => {
    cursors = [];
    look();
  });
  older.addEventListener("click", () => {
    if (next) cursors.push(next);
    look();
  });
  newer.addEventListener("click", () => {
    cursors.pop();
    look();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) look();
  });
  look();
  return {
    refresh: look,
    mark: (id) => {
      open = id;
      mark();
    },
    has: (one) => list.contains(one),
    focus: (id) => cards.get(id)?.link.focus(),
  };
}
