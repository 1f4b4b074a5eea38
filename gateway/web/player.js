// @ts-check
// Plays what a job gave: the stream by hls.js, one file where there is no stream, the sound where there is no picture.

import { ask } from "./api.js";
import { complain, element, say } from "./elements.js";
import { bitrate, clock } from "./format.js";
import { at, parse } from "./vtt.js";

/** @typedef {import("./api.js").Job} Job @typedef {import("./api.js").Outputs} Outputs @typedef {import("./vtt.js").Cue} Cue */

const HLS_TYPE = "application/vnd.apple.mpegurl";
/** Height of the strip of stills, in CSS pixels. */
const STRIP_HEIGHT = 44;
/** How long new addresses must have held before new ones are asked for, in milliseconds: something may really be gone. */
const RENEW_MS = 10_000;
/** At most so often a decoder that gave up is started again. */
const RECOVER_MS = 5_000;

/** Where hls.js is; empty when the gateway was built without it. */
export const playerAddress = () => document.querySelector("meta[name=hls-player]")?.getAttribute("content") ?? "";

let loading = /** @type {Promise<any> | null} */ (null);

/** hls.js, loaded when it is first needed; null when it is not there. @returns {Promise<any>} */
function library() {
  const src = playerAddress();
  if (!src) return Promise.resolve(null);
  loading ??= new Promise((resolve) => {
    const script = element("script", { src });
    script.addEventListener("load", () => resolve(/** @type {any} */ (window).Hls ?? null));
    script.addEventListener("error", () => {
      // Another try may be luckier.
      loading = null;
      resolve(null);
    });
    document.head.append(script);
  });
  return loading;
}

/**
 * @param {HTMLElement} where
 * @param {Job} job
 * @param {Outputs} outputs
 * @returns {{ end: () => void }}
 */
export function mountPlayer(where, job, outputs) {
  const picture = outputs.renditions.length > 0;
  const media = picture
    ? element("video", { controls: true, playsinline: true, preload: "metadata", poster: outputs.poster, "data-testid": "player" })
    : element("audio", { controls: true, preload: "metadata", "data-testid": "player" });
  const first = outputs.renditions[0];
  if (picture) {
    media.setAttribute("width", String(first.width));
    media.setAttribute("height", String(first.height));
  }
  const quality = element("select", {});
  const now = element("span", { class: "hint" });
  const error = element("p", { class: "error", role: "alert", hidden: true });
  const choose = element("label", { class: "inline", hidden: true }, "Quality ", quality);
  const strip = element("div", { class: "strip", hidden: true });
  where.append(media, strip, element("p", { class: "line" }, choose, now), error);

  const hold = {
    ended: false, plays: false, hls: /** @type {any} */ (null), strip: () => {},
    /** Goes on there with new addresses. @type {(fresh: Outputs, at: number) => void} */ again: () => {},
  };
  // Not asked of the element: one that has lost its source is paused, which it says after the error.
  media.addEventListener("play", () => (hold.plays = true));
  media.addEventListener("pause", () => (hold.plays = false));
  let renewed = -Infinity;
  media.addEventListener("error", async () => {
    if (hold.hls) return;
    const why = media.error?.message || `error ${media.error?.code}`;
    // It does not say whether the address was refused; a new one does no harm.
    if (performance.now() - renewed > RENEW_MS) {
      renewed = performance.now();
      const [at, plays] = [media.currentTime, hold.plays];
      const fresh = await renew(job);
      if (hold.ended) return;
      if (fresh) {
        hold.plays = plays;
        return hold.again(fresh, at);
      }
    }
    complain(error, `The browser cannot play this: ${why}`);
  });
  media.addEventListener("playing", () => complain(error));
  if (outputs.hls) stream(hold, media, job, outputs, { quality, choose, now, error });
  else progressive(hold, media, outputs, { quality, choose, now, error });
  if (picture && outputs.thumbnails) {
    stills(strip, /** @type {HTMLVideoElement} */ (media), outputs.thumbnails, outputs.duration_s).then((end) => {
      if (hold.ended) end();
      else hold.strip = end;
    }, () => {
      // The player is whole without its stills.
      strip.hidden = true;
    });
  }
  return {
    end() {
      hold.ended = true;
      hold.strip();
      hold.hls?.destroy();
      media.removeAttribute("src");
      media.load();
    },
  };
}

/** @typedef {{ ended: boolean, plays: boolean, hls: any, again: (fresh: Outputs, at: number) => void }} Hold */
/** @typedef {{ quality: HTMLSelectElement, choose: HTMLElement, now: HTMLElement, error: HTMLElement }} Controls */

/**
 * @param {Hold} hold
 * @param {HTMLMediaElement} media
 * @param {Job} job
 * @param {Outputs} outputs
 * @param {Controls} controls
 */
async function stream(hold, media, job, outputs, controls) {
  const Hls = await library();
  if (hold.ended) return;
  if (!Hls?.isSupported()) {
    const missing = playerAddress() ? "" : "This gateway was built without hls.js (npm ci --prefix gateway/web, then build again). ";
    if (media.canPlayType(HLS_TYPE)) {
      media.src = outputs.hls ?? "";
      hold.again = (fresh, at) => goOn(hold, media, fresh.hls ?? "", at);
      say(controls.now, `${missing}The browser plays the stream by itself.`);
    } else if (outputs.renditions.some((one) => one.mp4) || outputs.audio?.mp4) {
      progressive(hold, media, outputs, controls);
      if (missing) say(controls.now, `${missing}This is an MP4 file.`);
    } else {
      complain(controls.error, `${missing}This browser does not play HLS by itself; the addresses below work in other players.`);
    }
    return;
  }
  const hls = new Hls({ backBufferLength: 60 });
  hold.hls = hls;
  hls.on(Hls.Events.MANIFEST_PARSED, () => {
    const levels = [...hls.levels.entries()].reverse();
    controls.quality.replaceChildren(element("option", { value: -1 }, "automatic"),
      ...levels.map(([place, level]) => element("option", { value: place }, named(level, outputs))));
    controls.choose.hidden = levels.length < 2;
  });
  hls.on(Hls.Events.LEVEL_SWITCHED, (/** @type {string} */ _, /** @type {{ level: number }} */ { level }) => {
    const shown = hls.levels[level];
    if (shown) say(controls.now, `${hls.autoLevelEnabled ? "now " : ""}${named(shown, outputs)} · ${bitrate(shown.bitrate)}`);
  });
  controls.quality.addEventListener("change", () => {
    hls.nextLevel = Number(controls.quality.value);
  });
  let renewed = -Infinity;
  let recovered = -Infinity;
  hls.on(Hls.Events.ERROR, async (/** @type {string} */ _, /** @type {any} */ data) => {
    if (!data.fatal) return;
    if (data.type === Hls.ErrorTypes.MEDIA_ERROR && performance.now() - recovered > RECOVER_MS) {
      recovered = performance.now();
      hls.recoverMediaError();
      return;
    }
    // Addresses hold for a while only: the job gives new ones.
    if (data.response?.code >= 400 && data.response.code < 500 && performance.now() - renewed > RENEW_MS) {
      renewed = performance.now();
      const { plays } = hold;
      const at = media.currentTime;
      const fresh = await renew(job);
      if (hold.ended) return;
      if (fresh?.hls) {
        hls.config.startPosition = at;
        hls.loadSource(fresh.hls);
        // Another source stops the video.
        if (plays) media.play().catch(() => {});
        return;
      }
    }
    const code = data.response?.code ? ` (${data.response.code})` : "";
    complain(controls.error, `The stream cannot be played: ${data.details}${code}.`);
  });
  hls.loadSource(outputs.hls);
  hls.attachMedia(media);
}

/** The outputs with new addresses, if the job gives some. @param {Job} job @returns {Promise<Outputs | undefined>} */
async function renew(job) {
  return (await ask("GET", `/jobs/${encodeURIComponent(job.job_id)}`).catch(() => null))?.outputs;
}

/** Plays another file from a place, if the one before it played. @param {Hold} hold @param {HTMLMediaElement} media @param {string} src @param {number} at */
function goOn(hold, media, src, at) {
  const { plays } = hold;
  media.src = src;
  media.currentTime = at;
  if (plays) media.play().catch(() => {});
}

/** @param {{ height: number, name?: string }} level @param {Outputs} outputs */
function named(level, outputs) {
  return outputs.renditions.find((one) => one.height === level.height)?.name ?? (level.height ? `${level.height}p` : "sound");
}

/** @param {Hold} hold @param {HTMLMediaElement} media @param {Outputs} outputs @param {Controls} controls */
function progressive(hold, media, outputs, { quality, choose, now, error }) {
  let files = outputs.renditions.filter((one) => one.mp4);
  let sound = outputs.audio?.mp4;
  if (!files.length && !sound) {
    complain(error, "There is nothing that a browser could play.");
    return;
  }
  quality.replaceChildren(...files.map((one) => element("option", {}, one.name)));
  choose.hidden = files.length < 2;
  // The middle of the ladder: it starts soon, and looks well enough to choose from.
  quality.selectedIndex = Math.min(1, files.length - 1);
  /** @param {number} at */
  const show = (at) => {
    const one = files[quality.selectedIndex];
    goOn(hold, media, one?.mp4 ?? sound ?? "", at);
    say(now, one ? `${one.width}×${one.height} · ${bitrate(one.average_bandwidth)}` : "sound");
  };
  quality.addEventListener("change", () => show(media.currentTime));
  hold.again = (fresh, at) => {
    files = fresh.renditions.filter((one) => one.mp4);
    sound = fresh.audio?.mp4;
    show(at);
  };
  show(0);
}

/**
 * A strip of stills under the video, to seek by; the still of the place under the pointer stands above it.
 * @param {HTMLElement} strip
 * @param {HTMLVideoElement} video
 * @param {string} path
 * @param {number} duration
 * @returns {Promise<() => void>} Ends it.
 */
async function stills(strip, video, path, duration) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`the thumbnails' answer is ${response.status}`);
  const cues = parse(await response.text(), new URL(path, location.href).href);
  if (!cues.length || !(duration > 0)) throw new Error("no thumbnails");
  /** @type {Map<string, Promise<HTMLImageElement>>} */
  const sheets = new Map();
  /** @param {Cue} cue */
  const sheet = (cue) => {
    let image = sheets.get(cue.url);
    if (!image) {
      const made = new Image();
      made.src = cue.url;
      image = made.decode().then(() => made);
      sheets.set(cue.url, image);
      // One that did not come is asked for again when it is wanted again.
      image.catch(() => sheets.delete(cue.url));
    }
    return image;
  };
  const film = element("canvas", { "aria-hidden": "true" });
  const preview = element("canvas", { class: "preview", "aria-hidden": "true", hidden: true, width: cues[0].w, height: cues[0].h });
  const time = element("span", { class: "when", "aria-hidden": "true", hidden: true });
  const seek = element("input", { type: "range", min: 0, max: duration, step: "any", value: 0, "aria-label": "Seek" });
  strip.append(film, seek, preview, time);
  strip.hidden = false;

  const draw = () => {
    const [width, dense] = [strip.clientWidth, window.devicePixelRatio || 1];
    const wide = (STRIP_HEIGHT * cues[0].w) / cues[0].h;
    const count = Math.max(1, Math.ceil(width / wide));
    film.width = width * dense;
    film.height = STRIP_HEIGHT * dense;
    const context = film.getContext("2d");
    for (let place = 0; place < count; place += 1) {
      const cue = at(cues, ((place + 0.5) / count) * duration);
      sheet(cue).then((image) => {
        context?.drawImage(image, cue.x, cue.y, cue.w, cue.h,
          (place * film.width) / count, 0, film.width / count, film.height);
      }, () => {});
    }
  };
  const resized = new ResizeObserver(draw);
  resized.observe(strip);
  let hovered = cues[0];
  strip.addEventListener("pointermove", (event) => {
    const box = strip.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const cue = at(cues, share * duration);
    hovered = cue;
    sheet(cue).then((image) => {
      if (hovered !== cue) return;
      preview.getContext("2d")?.drawImage(image, cue.x, cue.y, cue.w, cue.h, 0, 0, preview.width, preview.height);
      preview.hidden = time.hidden = false;
    }, () => {});
    say(time, clock(share * duration));
    const shown = Math.min(preview.width, box.width);
    const left = Math.min(box.width - shown, Math.max(0, share * box.width - shown / 2));
    preview.style.left = time.style.left = `${left}px`;
  });
  strip.addEventListener("pointerleave", () => {
    preview.hidden = time.hidden = true;
  });
  seek.addEventListener("input", () => {
    video.currentTime = Number(seek.value);
  });
  const follow = () => {
    seek.value = String(video.currentTime);
    seek.setAttribute("aria-valuetext", `${clock(video.currentTime)} of ${clock(duration)}`);
  };
  video.addEventListener("timeupdate", follow);
  follow();
  return () => resized.disconnect();
}
