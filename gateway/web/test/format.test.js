import assert from "node:assert/strict";
import test from "node:test";

import { ago, bitrate, bytes, clock, cut, fetched, gone, percent, span, speed, standing, title } from "../format.js";

test("sizes, times and rates are short and have their unit", () => {
  const rows = [
    [bytes(0), "0 B"], [bytes(999), "999 B"], [bytes(1000), "1.0 KB"], [bytes(999_600), "1.0 MB"], [bytes(37_682_770), "37.7 MB"], [bytes(5e12), "5.0 TB"], [bytes(NaN), ""],
    [clock(0), "0:00"], [clock(65.9), "1:05"], [clock(3723), "1:02:03"], [clock(NaN), "0:00"],
    [span(0), "0 s"], [span(0.44), "0.4 s"], [span(9.96), "10 s"], [span(99.6), "2 min"], [span(7500), "2 h 5 min"], [span(7200), "2 h"], [span(-1), ""],
    [bitrate(96_400), "96 kbit/s"], [bitrate(3_100_000), "3.1 Mbit/s"],
    [percent(0), "0\u00a0%"], [percent(0.004), "<1\u00a0%"], [percent(0.994), "99\u00a0%"], [percent(1), "100\u00a0%"],
    [speed(2.34), "2.3×"], [speed(41.2), "41×"],
    [ago("2026-01-01T00:00:00Z", Date.parse("2026-01-01T00:00:05Z")), "now"],
    [ago("2026-01-01T00:00:00Z", Date.parse("2026-01-01T01:30:00Z")), "1 h 30 min ago"],
    [ago("never", 0), ""],
  ];
  for (const [got, wants] of rows) assert.equal(got, wants);
});

test("a job is called by its file, its URL's last part, or its id", () => {
  const called = (spec) => title({ job_id: "j1", spec });
  assert.equal(called({ input_path: "aws/uploads/1/x.mp4", labels: { filename: "my clip.mp4" } }), "my clip.mp4");
  assert.equal(called({ input_url: "https://h/a/b%20c.mp4?token=1#t" }), "b c.mp4");
  assert.equal(called({ input_url: "https://h/%E0%A4%A" }), "%E0%A4%A");
  assert.equal(called({}), "j1");
  // What turns the direction of text could make one kind of file look like another.
  assert.equal(called({ labels: { filename: "a\u202egpm.exe\u2069" } }), "agpm.exe");
  assert.equal(called({ labels: { filename: "\u202e" } }), "j1");
});

test("a name is cut to bytes, never inside a character", () => {
  assert.equal(cut("aßb", 2), "a");
  assert.equal(cut("aßb", 3), "aß");
  assert.equal(cut("🎬🎬", 7), "🎬");
  assert.equal(cut("plain", 256), "plain");
});

test("a job whose files are kept no longer says so, and since when", () => {
  const since = "2026-01-01T00:00:00Z";
  assert.match(gone({ state: "succeeded", outputs_until: since }), /^Its files are gone since .*202[56].*\.$/);
  assert.equal(gone({ state: "succeeded" }), "Its files are gone.");
  assert.equal(gone({ state: "succeeded", outputs: { renditions: [] }, outputs_until: since }), "");
  assert.equal(gone({ state: "failed" }), "");
});

test("where a job stands is one line", () => {
  const running = { state: "running", phase: "encoding", progress: { percent: 41.6, speed: 2.25, eta_seconds: 11.2 } };
  assert.equal(standing(running), "encoding · 42\u00a0% · 2.3× · 12 s left");
  assert.equal(standing({ state: "running", phase: "probing", progress: { percent: 0 } }), "reading");
  const fetching = { state: "running", phase: "source", progress: { percent: 0, source_bytes: 12e6, source_bytes_total: 80e6 } };
  assert.equal(standing(fetching), "fetched 12.0 MB of 80.0 MB");
  assert.equal(fetched({ percent: 0, source_bytes: 500 }), "fetched 500 B");
  assert.equal(fetched({ percent: 0, source_bytes: 500, source_bytes_total: 10 }), "fetched 500 B");
  assert.equal(fetched({ percent: 0 }), "");
  assert.equal(standing({ state: "retry_wait", progress: { percent: 0 } }), "to be tried again");
  assert.equal(standing({ state: "of_the_future", progress: { percent: 0 } }), "of_the_future");
});
