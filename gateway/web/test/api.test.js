import assert from "node:assert/strict";
import { webcrypto } from "node:crypto";
import test from "node:test";

import { Problem, newJobId, uploadAddress } from "../api.js";
import { choice, points } from "../pools.js";

// Node 18 keeps it in a module; browsers and later ones have it.
globalThis.crypto ??= webcrypto;

test("an upload goes to this origin when the address is the gateway's own", () => {
  const to = (upload_url, origin) => uploadAddress({ upload_url, input_path: "aws/uploads/k/my clip.mp4" }, origin);
  const own = "/upload/aws/uploads/k/my%20clip.mp4?expires=1&sig=a";
  assert.equal(to(`http://127.0.0.1:8080${own}`, "http://127.0.0.1:8080"), own);
  // Behind a proxy the worker may know another name or scheme.
  assert.equal(to(`http://inside:8080${own}`, "https://video.example"), own);
  const bucket = "https://bucket.example/uploads/k/my%20clip.mp4?X-Sig=a";
  assert.equal(to(bucket, "https://video.example"), bucket);
});

test("ids are the API's kind of name and never the same", () => {
  const ids = new Set(Array.from({ length: 100 }, newJobId));
  assert.equal(ids.size, 100);
  for (const id of ids) assert.match(id, /^[A-Za-z0-9._-]{1,64}$/);
});

test("a problem says when to come back, if it does", () => {
  assert.equal(new Problem(429, { title: "Full", detail: "wait" }, "7").retryAfter, 7);
  assert.equal(new Problem(429, { retry_after_s: 3 }, null).retryAfter, 3);
  assert.equal(new Problem(429, { title: "Full" }, null).retryAfter, null);
  assert.equal(new Problem(429, { title: "Full" }, "Wed, 21 Oct 2026 07:28:00 GMT").retryAfter, null);
  assert.equal(new Problem(502, {}, null).message, "the gateway answered 502");
});

test("the choice is told in shares, and why there is none", () => {
  const pool = (name, share, wait_s, rejected) => ({ name, share, wait_s, rejected });
  assert.equal(choice([pool("aws", 0.25, 0), pool("gcp", 0.75, 12)]), "A new job goes to gcp (75\u00a0%) or aws (25\u00a0%), and in gcp it starts in about 12 s.");
  assert.equal(choice([pool("aws", 1, 0), pool("gcp", 0, 0, "draining")]), "A new job goes to aws (100\u00a0%), and in aws it starts at once.");
  assert.equal(choice([pool("aws", 0, 0, "no_usable_worker")]), "A new job would be refused now. aws: no usable worker.");
});

test("the newest share is at the right edge", () => {
  assert.equal(points([0, 1], 119, 24), "118.0,23.0 119.0,1.0");
});
