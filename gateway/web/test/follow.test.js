import assert from "node:assert/strict";
import test from "node:test";

import { follow, put } from "../api.js";

/** A job as an answer or an event has it. */
const job = (state, attempt = 1, percent = 0) => ({ state, attempt, progress: { percent } });

/** A browser with nothing but a page that is seen or not, events that come or not, and jobs as `answers` has them. */
function browser(answers) {
  const said = { jobs: [], updates: [], live: [], streams: [], problems: [] };
  const page = new EventTarget();
  globalThis.document = Object.assign(page, { hidden: false });
  globalThis.EventSource = class extends EventTarget {
    static CLOSED = 2;
    readyState = 1;
    constructor(url) {
      super();
      this.url = url;
      said.streams.push(this);
    }
    close() {
      this.readyState = 2;
    }
  };
  globalThis.fetch = async () => {
    const answer = await (answers.length > 1 ? answers.shift() : answers[0]);
    if (answer instanceof Response) return answer;
    return { ok: true, status: 200, headers: new Headers(), text: async () => JSON.stringify(answer) };
  };
  said.end = follow("j", {
    update: (update) => said.updates.push(update.progress.percent),
    job: (job) => said.jobs.push(job.state),
    problem: (problem) => said.problems.push(problem?.status ?? null),
    live: (live) => said.live.push(live),
  });
  said.see = (hidden) => {
    document.hidden = hidden;
    page.dispatchEvent(new Event("visibilitychange"));
  };
  return said;
}

async function until(what, holds) {
  const deadline = Date.now() + 10_000;
  while (!holds()) {
    assert.ok(Date.now() < deadline, `never: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

test("a page that nobody looks at holds no stream, and has one again when it is looked at", async () => {
  const said = browser([job("running")]);
  await until("a stream", () => said.streams.length === 1);
  said.streams[0].onopen();
  said.see(true);
  assert.equal(said.streams[0].readyState, EventSource.CLOSED);
  assert.deepEqual(said.live, [true, false]);
  const asked = said.jobs.length;
  await until("the job is asked for while hidden", () => said.jobs.length > asked);
  assert.equal(said.streams.length, 1);
  said.see(false);
  await until("a second stream", () => said.streams.length === 2);
  said.end();
});

test("a stream that was refused for good is asked for again", async () => {
  const said = browser([job("running")]);
  await until("a stream", () => said.streams.length === 1);
  said.streams[0].readyState = EventSource.CLOSED;
  said.streams[0].onerror();
  await until("a second stream", () => said.streams.length === 2);
  said.end();
});

test("a question that failed is asked again although events come", async () => {
  const said = browser([job("queued"), new Response("{}", { status: 503 }), job("running")]);
  await until("a stream", () => said.streams.length === 1);
  const [stream] = said.streams;
  stream.onopen();
  stream.dispatchEvent(Object.assign(new Event("state"), { data: JSON.stringify(job("running")) }));
  await until("the job as it runs", () => said.jobs.at(-1) === "running");
  assert.deepEqual(said.problems, [null, 503, null]);
  said.end();
});

test("an answer that a later question has overtaken is not shown", async () => {
  let late = (answer) => answer;
  const first = new Promise((resolve) => (late = resolve));
  const said = browser([first, job("succeeded")]);
  said.see(false);
  await until("the second answer", () => said.jobs.length === 1);
  late(job("running"));
  await new Promise((resolve) => setTimeout(resolve));
  assert.deepEqual(said.jobs, ["succeeded"]);
});

test("an event that an answer has overtaken does not take the bar back, and a new attempt does", async () => {
  const at = (attempt, percent) => job("running", attempt, percent);
  const said = browser([at(1, 40)]);
  await until("a stream", () => said.streams.length === 1);
  const [stream] = said.streams;
  stream.onopen();
  for (const now of [at(1, 0), at(1, 16), at(1, 43), at(2, 5), at(1, 99)]) {
    stream.dispatchEvent(Object.assign(new Event("progress"), { data: JSON.stringify(now) }));
  }
  assert.deepEqual(said.updates, [43, 5]);
  said.end();
});

test("an answer that an event has overtaken does not take the bar back, and a state that it brings is told", async () => {
  let late = (answer) => answer;
  const second = new Promise((resolve) => (late = resolve));
  const said = browser([job("running", 1, 0), second, job("retry_wait", 1, 0)]);
  await until("a stream", () => said.streams.length === 1);
  const [stream] = said.streams;
  stream.onopen();
  const tell = (kind, now) => stream.dispatchEvent(Object.assign(new Event(kind), { data: JSON.stringify(now) }));
  tell("state", job("running", 1, 0));
  tell("progress", job("running", 1, 15));
  late(job("running", 1, 0));
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.deepEqual([said.jobs, said.updates], [["running"], [0, 15]]);
  tell("state", job("retry_wait", 1, 0));
  await until("the whole job", () => said.jobs.length === 2);
  assert.deepEqual([said.jobs, said.updates], [["running", "retry_wait"], [0, 15, 0]]);
  said.end();
});

test("an upload that was stopped before it began does not begin", async () => {
  const stop = new AbortController();
  stop.abort();
  await assert.rejects(put("/upload/x", {}, () => {}, stop.signal), { code: "stopped" });
});
