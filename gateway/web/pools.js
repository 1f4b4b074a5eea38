// @ts-check
// The operator's view: pools and workers as the gateway sees them, once a second.

import { ask } from "./api.js";
import { byId, complain, element, say, svg } from "./elements.js";
import { percent, span } from "./format.js";

/**
 * @typedef {{ worker: string, pool: string, slots: number, running: number, queued: number, queue_max: number,
 *   work_seconds: number, speed: number, pool_queued: number, draining: boolean }} Report
 * @typedef {{ address: string, healthy: boolean, health: string, drain: boolean, ejected_s?: number, rejected?: string,
 *   report_age_s?: number, outstanding: number, round_trip_ms: number, report?: Report }} Worker
 * @typedef {{ name: string, weight: number, drain: boolean, egress_usd_per_gb: number, capacity: number, headroom: number,
 *   ramp: number, wait_s: number, share: number, rejected?: string, workers: Worker[] }} Pool
 * @typedef {{ version: string, config_generation: number, pools: Pool[] }} Status
 */

/** How often the pools are asked for, in milliseconds. */
const LOOK_MS = 1000;
/** Looks that a sparkline shows: two minutes. */
const PAST = 120;
/** Most slots that are drawn one by one; more are only counted. */
const SLOTS_DRAWN_MAX = 16;

/** Why something takes no job now, in words: the API's labels are ones. @param {string | null | undefined} reason */
const why = (reason) => (reason ?? "").replaceAll("_", " ");

/** @param {Pool} pool @param {(report: Report) => number} count */
const sum = (pool, count) => pool.workers.reduce((all, { report }) => all + (report ? count(report) : 0), 0);

/** A bar of a share, 0–1; the number stands beside it. */
function bar() {
  const fill = svg("rect", { height: 8, width: 0, rx: 1 });
  const drawn = svg("svg", { class: "gauge", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "track", width: 100, height: 8, rx: 1 }), fill);
  const text = element("span", { class: "number" });
  return {
    node: element("span", { class: "measure" }, drawn, text),
    /** @param {number} share */
    set(share) {
      fill.setAttribute("width", String(Math.min(1, share) * 100));
      say(text, percent(share));
    },
  };
}

/** A sparkline's points, newest at the right edge. @param {number[]} past Shares, 0–1. @param {number} width @param {number} height */
export function points(past, width, height) {
  const step = width / (PAST - 1);
  const from = PAST - past.length;
  return past.map((share, place) =>
    `${((from + place) * step).toFixed(1)},${(height - 1 - share * (height - 2)).toFixed(1)}`).join(" ");
}

/** What the gateway would do with a job of which nothing is known. @param {Pool[]} pools */
export function choice(pools) {
  const open = pools.filter((pool) => pool.share > 0).sort((a, b) => b.share - a.share);
  if (!open.length) {
    const reasons = pools.map((pool) => `${pool.name}: ${why(pool.rejected) || "no share"}`).join("; ");
    return `A new job would be refused now. ${reasons}.`;
  }
  const names = open.map((pool) => `${pool.name} (${percent(pool.share)})`);
  const last = names.pop();
  const when = open[0].wait_s > 0 ? `in about ${span(open[0].wait_s)}` : "at once";
  return `A new job goes to ${[names.join(", "), last].filter(Boolean).join(" or ")}, and in ${open[0].name} it starts ${when}.`;
}

/** A pool's rows: its own, and one for each of its workers. */
class PoolRows {
  /** @param {Pool} pool @param {number} colour */
  constructor(pool, colour) {
    /** @type {number[]} */
    this.past = [];
    /** @type {Map<string, WorkerRow>} */
    this.workers = new Map();
    this.share = bar();
    this.free = bar();
    this.line = svg("polyline", { fill: "none", "vector-effect": "non-scaling-stroke" });
    const spark = svg("svg", { class: "spark", viewBox: "0 0 120 24", preserveAspectRatio: "none", "aria-hidden": "true" }, this.line);
    this.state = element("span", { class: "state" });
    [this.running, this.waiting, this.wait, this.weight, this.egress] =
      ["Running", "Waiting", "Wait", "Weight", "Egress"].map((head) => element("td", { "data-head": head }));
    this.row = element("tr", { class: "pool", "data-testid": "pool", "data-pool": pool.name },
      element("th", { scope: "row" }, element("i", { class: "dot", "aria-hidden": "true" }), pool.name, this.state),
      element("td", { "data-head": "Share of new jobs" }, element("span", { class: "share-cell" }, this.share.node, spark)),
      element("td", { "data-head": "Free" }, this.free.node),
      this.running, this.waiting, this.wait, this.weight, this.egress);
    this.segment = element("span", {});
    this.body = element("tbody", {}, this.row);
    for (const node of [this.body, this.segment]) node.dataset.colour = String(colour % 4);
    this.show(pool);
  }

  /** @param {Pool} pool */
  show(pool) {
    this.past.push(pool.share);
    if (this.past.length > PAST) this.past.shift();
    this.line.setAttribute("points", points(this.past, 120, 24));
    this.share.set(pool.share);
    this.free.set(pool.headroom);
    this.segment.style.flexGrow = String(pool.share);
    say(this.segment, pool.share >= 0.08 ? `${pool.name} ${percent(pool.share)}` : "");
    const ramp = pool.ramp < 1 ? `coming back, ${percent(pool.ramp)}` : "";
    say(this.state, why(pool.rejected) || (pool.drain ? "draining" : ramp));
    this.state.dataset.state = pool.rejected ? "failed" : "";
    say(this.running, `${sum(pool, (r) => r.running)} of ${sum(pool, (r) => r.slots)}`);
    say(this.waiting, String(Math.max(0, ...pool.workers.map(({ report }) => report?.pool_queued ?? 0))));
    say(this.wait, pool.wait_s > 0 ? span(pool.wait_s) : "none");
    say(this.weight, String(Math.round(pool.weight * 1000) / 1000));
    say(this.egress, pool.egress_usd_per_gb > 0 ? `$${pool.egress_usd_per_gb}/GB` : "free");
    const gone = new Set(this.workers.keys());
    for (const worker of pool.workers) {
      gone.delete(worker.address);
      let row = this.workers.get(worker.address);
      if (!row) {
        row = new WorkerRow();
        this.workers.set(worker.address, row);
        this.body.append(row.row);
      }
      row.show(worker);
    }
    for (const address of gone) {
      this.workers.get(address)?.row.remove();
      this.workers.delete(address);
    }
  }
}

class WorkerRow {
  constructor() {
    this.name = element("b");
    this.address = element("span", { class: "hint" });
    this.state = element("span", { class: "state" });
    this.slots = element("span", { class: "slots", role: "img" });
    this.facts = element("span", { class: "line" });
    this.row = element("tr", { class: "worker", "data-testid": "worker" },
      element("td", { colspan: 8 }, element("span", { class: "line" },
        element("span", { class: "who" }, this.name, this.address), this.slots, this.state, this.facts)));
  }

  /** @param {Worker} worker */
  show(worker) {
    const { report } = worker;
    say(this.name, report?.worker ?? worker.address);
    say(this.address, report ? worker.address : "");
    const reason = worker.health === "up" ? why(worker.rejected) : worker.health;
    const drains = worker.drain || report?.draining ? "draining" : "";
    const out = worker.ejected_s ? `ejected for ${span(worker.ejected_s)}` : "";
    say(this.state, out || reason || drains || "ok");
    this.state.dataset.state = worker.healthy ? (worker.rejected ? "retry_wait" : "succeeded") : "failed";
    this.row.classList.toggle("gone", !worker.healthy);
    const [slots, running] = [report?.slots ?? 0, report?.running ?? 0];
    const drawn = slots <= SLOTS_DRAWN_MAX ? slots : 0;
    while (this.slots.children.length > drawn) this.slots.lastChild?.remove();
    while (this.slots.children.length < drawn) this.slots.append(element("i"));
    [...this.slots.children].forEach((slot, place) => slot.classList.toggle("busy", place < running));
    this.slots.setAttribute("aria-label", `${running} of ${slots} slots busy`);
    const facts = report
      ? [`${running}/${slots} slots`, `${report.queued}/${report.queue_max} queued`, `${report.work_seconds.toFixed(0)} s of work`,
        `speed ${report.speed.toFixed(2)}`, `${worker.round_trip_ms.toFixed(1)} ms`,
        worker.report_age_s != null && worker.report_age_s > 3 && `heard ${span(worker.report_age_s)} ago`]
      : [];
    while (this.facts.children.length > facts.length) this.facts.lastChild?.remove();
    while (this.facts.children.length < facts.length) this.facts.append(element("span"));
    facts.forEach((fact, place) => say(this.facts.children[place], fact || ""));
  }
}

/** Looks each second for as long as the page is looked at. */
export function startPools() {
  const [error, said, sentence, shares, pulse] = ["pools-error", "pools-said", "choice", "shares", "pulse"].map(byId);
  const table = /** @type {HTMLTableElement} */ (document.querySelector("[data-testid=pools]"));
  /** @type {Map<string, PoolRows>} */
  const rows = new Map();
  let timer = 0;
  let colours = 0;

  /** @param {Status} status */
  const show = ({ pools, version, config_generation: generation }) => {
    const gone = new Set(rows.keys());
    for (const pool of pools) {
      gone.delete(pool.name);
      const known = rows.get(pool.name);
      if (known) known.show(pool);
      else {
        const made = new PoolRows(pool, colours++);
        rows.set(pool.name, made);
        table.append(made.body);
        shares.append(made.segment);
      }
    }
    for (const name of gone) {
      rows.get(name)?.body.remove();
      rows.get(name)?.segment.remove();
      rows.delete(name);
    }
    const workers = pools.flatMap((pool) => pool.workers);
    const healthy = workers.filter((worker) => worker.healthy).length;
    const running = pools.reduce((all, pool) => all + sum(pool, (report) => report.running), 0);
    say(pulse, `${healthy} of ${workers.length} workers healthy · ${running} running`);
    pulse.dataset.state = healthy === workers.length ? "succeeded" : healthy ? "retry_wait" : "failed";
    say(said, `gateway ${version}, routing file no. ${generation}`);
    say(sentence, choice(pools));
  };
  const look = async () => {
    clearTimeout(timer);
    try {
      show(await ask("GET", "/pools"));
      complain(error);
    } catch (problem) {
      complain(error, `The pools are not up to date. ${/** @type {Error} */ (problem).message}.`);
      say(pulse, "");
      // Who may not see them will not by asking again: only another key helps, and then this is called.
      if (/** @type {import("./api.js").Problem} */ (problem).status === 403) return;
    }
    if (!document.hidden) timer = setTimeout(look, LOOK_MS);
  };
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) look();
  });
  look();
  return look;
}
