import assert from "node:assert/strict";
import test from "node:test";

const kept = new Map();
globalThis.sessionStorage = {
  getItem: (name) => kept.get(name) ?? null,
  setItem: (name, value) => kept.set(name, value),
  removeItem: (name) => kept.delete(name),
};
globalThis.document = Object.assign(new EventTarget(), { hidden: false });

const { ask, follow, put } = await import("../api.js");
const { headers, key, onKey, useKey } = await import("../key.js");
const { Stream } = await import("../stream.js");

async function until(what, holds) {
  const deadline = Date.now() + 10_000;
  while (!holds()) {
    assert.ok(Date.now() < deadline, `never: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Answers of a gateway that wants a key; each request's headers are kept. */
function gateway(answer) {
  const asked = [];
  globalThis.fetch = async (path, options = {}) => {
    asked.push({ path, headers: options.headers ?? {} });
    return answer(path, options);
  };
  return asked;
}

test("a key is one that a header can carry, and is sent with every question until it is taken back", async () => {
  const asked = gateway(async () => new Response("{}"));
  for (const bad of ["", "  ", "two words", "schlüssel", "a\nb"]) assert.equal(useKey(bad), false, bad);
  assert.equal(key(), null);
  await ask("GET", "/jobs");
  assert.ok(useKey("  secret  "));
  await ask("GET", "/jobs");
  await ask("POST", "/jobs", {});
  useKey(null);
  await ask("GET", "/jobs");
  assert.deepEqual(asked.map(({ headers }) => headers.authorization), [undefined, "Bearer secret", "Bearer secret", undefined]);
  assert.equal(asked[2].headers["content-type"], "application/json");
});

test("where a browser forbids storage a key is held as long as the page lives", async () => {
  const { getItem, setItem, removeItem } = sessionStorage;
  const forbidden = () => {
    throw new DOMException("denied", "SecurityError");
  };
  Object.assign(sessionStorage, { getItem: forbidden, setItem: forbidden, removeItem: forbidden });
  try {
    assert.ok(useKey("secret"));
    assert.deepEqual(headers(), { authorization: "Bearer secret" });
    assert.ok(useKey(null));
    assert.equal(key(), null);
  } finally {
    Object.assign(sessionStorage, { getItem, setItem, removeItem });
  }
});

test("a key is asked for when the gateway wants one, and again when the one given is no good", async () => {
  const told = [];
  onKey((wrong) => told.push(wrong));
  gateway(async () => new Response('{"title":"no"}', { status: 401 }));
  await assert.rejects(ask("GET", "/jobs"), { status: 401 });
  assert.deepEqual(told, [false]);
  useKey("wrong");
  await assert.rejects(ask("GET", "/jobs"), { status: 401 });
  assert.deepEqual(told, [false, null, true]);
  // An answer that comes late speaks of the key before.
  let late = (answer) => answer;
  gateway(() => new Promise((resolve) => (late = resolve)));
  const before = ask("GET", "/jobs");
  useKey("right");
  late(new Response("{}", { status: 401 }));
  await assert.rejects(before);
  assert.deepEqual(told, [false, null, true, null]);
  gateway(async () => new Response("{}", { status: 403 }));
  await assert.rejects(ask("GET", "/pools"), { status: 403 });
  assert.equal(told.length, 4, "who may not is known all the same");
  useKey(null);
});

test("an upload takes the key along to this origin alone, and what its URL's signature covers to any", async () => {
  const sent = [];
  globalThis.XMLHttpRequest = class {
    upload = {};
    headers = {};
    status = 201;
    open() {}
    setRequestHeader(name, value) {
      this.headers[name] = value;
    }
    send() {
      sent.push(this.headers);
      this.onload();
    }
  };
  useKey("secret");
  for (const url of ["/upload/aws/k?sig=a", "https://bucket.example/k?sig=a", "//bucket.example/k"]) {
    await put(url, { size: 1 }, () => {}, new AbortController().signal, { "x-amz-storage-class": "STANDARD" });
  }
  useKey(null);
  const signed = { "x-amz-storage-class": "STANDARD" };
  assert.deepEqual(sent, [{ authorization: "Bearer secret", ...signed }, signed, signed]);
});

/** A body that is written piece by piece. */
function body() {
  const pipe = new TransformStream();
  const writer = pipe.writable.getWriter();
  const say = (text) => writer.write(new TextEncoder().encode(text));
  return { response: new Response(pipe.readable), say, end: () => writer.close() };
}

test("events are read with the key, however they are cut, and from where they broke off", async () => {
  useKey("secret");
  const bodies = [body(), body()];
  const asked = gateway(async () => bodies[asked.length - 1]?.response ?? new Response(null, { status: 204 }));
  const stream = new Stream("/jobs/j/events");
  const said = [];
  let opened = 0;
  let broken = 0;
  stream.onopen = () => (opened += 1);
  stream.onerror = () => (broken += 1);
  for (const kind of ["state", "progress", "end", "message"]) {
    stream.addEventListener(kind, ({ data }) => said.push([kind, data]));
  }
  await until("it is open", () => opened === 1);
  assert.equal(asked[0].headers.authorization, "Bearer secret");
  assert.equal(asked[0].headers["last-event-id"], undefined);
  for (const piece of ["retry: 1\n: still here\n\nid: 7\nev", "ent: state\nda", "ta: {\"a\":", "1}\r\n\r", "\ndata: two\ndata:  lines\n\nevent: progress\n\n"]) {
    await bodies[0].say(piece);
  }
  await until("two came", () => said.length === 2);
  assert.deepEqual(said, [["state", '{"a":1}'], ["message", "two\n lines"]]);
  await bodies[0].say("event: end\ndata: cut off");
  bodies[0].end();
  await until("it comes again", () => opened === 2);
  assert.deepEqual([said.length, broken, asked[1].headers["last-event-id"]], [2, 1, "7"]);
  await bodies[1].say("event: end\ndata: {}\n\n");
  await until("the end", () => said.length === 3);
  bodies[1].end();
  await until("no more", () => stream.readyState === 2);
  assert.equal(asked.length, 3, "after 204 it does not come again");
  useKey(null);
});

test("a job is followed with the key where there is one", async () => {
  useKey("secret");
  const events = body();
  const answer = JSON.stringify({ state: "running", attempt: 1, progress: { percent: 1 } });
  gateway(async (path) => (path.endsWith("/events") ? events.response : new Response(answer)));
  const said = { updates: [], live: [] };
  const end = follow("j", {
    update: (update) => said.updates.push(update.progress.percent),
    job: () => {},
    problem: () => {},
    live: (live) => said.live.push(live),
  });
  await until("it is live", () => said.live.includes(true));
  await events.say('event: progress\ndata: {"attempt":1,"progress":{"percent":40}}\n\n');
  await until("progress", () => said.updates.includes(40));
  end();
  assert.deepEqual(headers(), { authorization: "Bearer secret" });
  useKey(null);
});
