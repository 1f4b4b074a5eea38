import assert from "node:assert/strict";
import test from "node:test";

import { at, parse } from "../vtt.js";

const BASE = "http://h/media/j/t/thumbnails.vtt";

test("cues name a part of a sheet beside the file", () => {
  const text = "WEBVTT\r\n\r\n00:00.000 --> 00:05.000\r\nsprite_001.jpg#xywh=0,0,160,90\r\n\r\n" +
    "2\r\n01:00:05.500 --> 01:00:10.000 line:0\r\nsprite_002.jpg#xywh=160,90,160,90\r\n";
  assert.deepEqual(parse(text, BASE), [
    { from: 0, to: 5, url: "http://h/media/j/t/sprite_001.jpg", x: 0, y: 0, w: 160, h: 90 },
    { from: 3605.5, to: 3610, url: "http://h/media/j/t/sprite_002.jpg", x: 160, y: 90, w: 160, h: 90 },
  ]);
});

test("what is no thumbnail is left out", () => {
  const blocks = ["NOTE x", "00:01 --> 00:00\na.jpg#xywh=0,0,1,1", "00:00 --> 00:01\na.jpg", "00:00 --> 00:01\na.jpg#xywh=0,0,0,9",
    "00:00 --> 00:01", "--> \na.jpg#xywh=0,0,1,1", ""];
  assert.deepEqual(parse(`WEBVTT\n\n${blocks.join("\n\n")}`, BASE), []);
  assert.deepEqual(parse("", BASE), []);
});

test("a moment has the cue that began last", () => {
  const cues = [0, 5, 10].map((from) => ({ from, to: from + 5 }));
  assert.equal(at(cues, 0).from, 0);
  assert.equal(at(cues, 7).from, 5);
  assert.equal(at(cues, 99).from, 10);
  assert.equal(at([], 1), undefined);
});
