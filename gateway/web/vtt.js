// @ts-check
// Thumbnails: WebVTT cues whose text is `FILE#xywh=X,Y,W,H`, a part of a sprite sheet.

/**
 * @typedef {object} Cue
 * @property {number} from Seconds.
 * @property {number} to Seconds.
 * @property {string} url Of the sheet.
 * @property {number} x
 * @property {number} y
 * @property {number} w
 * @property {number} h
 */

/** `01:02:03.500` or `02:03.500` as seconds. @param {string} text */
function seconds(text) {
  return text.split(":").reduce((sum, part) => sum * 60 + Number(part), 0);
}

/**
 * The cues that can be used; others are left out.
 * @param {string} text
 * @param {string} base What the sheets' names are relative to.
 * @returns {Cue[]}
 */
export function parse(text, base) {
  const cues = [];
  for (const block of text.replace(/\r\n?/g, "\n").split(/\n\n+/)) {
    const lines = block.split("\n");
    const at = lines.findIndex((line) => line.includes("-->"));
    const times = /^\s*([\d:.]+)\s+-->\s+([\d:.]+)/.exec(lines[at] ?? "");
    const part = /^(.+)#xywh=(?:pixel:)?(\d+),(\d+),(\d+),(\d+)\s*$/.exec(lines[at + 1] ?? "");
    if (!times || !part) continue;
    const [from, to] = [seconds(times[1]), seconds(times[2])];
    const [x, y, w, h] = part.slice(2).map(Number);
    if (!(to > from) || !(w > 0) || !(h > 0)) continue;
    cues.push({ from, to, url: new URL(part[1], base).href, x, y, w, h });
  }
  return cues;
}

/**
 * The cue of a moment, or the nearest before it.
 * @param {Cue[]} cues In order.
 * @param {number} s
 */
export function at(cues, s) {
  let found = cues[0];
  for (const cue of cues) {
    if (cue.from > s) break;
    found = cue;
  }
  return found;
}
