// The page's side: one video element, two players behind one face, and a record of all that happens. `play.mjs` calls
// what `stage` holds.

'use strict';

const video = document.querySelector('video');
const record = { events: [], errors: [], frames: {} };
/** Every SourceBuffer of the page with the type it was made for; the players make them, so the making is watched. */
const buffers = [];

const seconds = () => Math.round(performance.now()) / 1000;
const note = (name, detail) => record.events.push({ at: seconds(), name, ...(detail && { detail }) });
const fail = (from, what, fatal) => record.errors.push({ at: seconds(), from, what, fatal });

const addSourceBuffer = MediaSource.prototype.addSourceBuffer;
MediaSource.prototype.addSourceBuffer = function (type) {
  const buffer = addSourceBuffer.call(this, type);
  buffer.addEventListener('error', () => fail('SourceBuffer', type, true));
  buffers.push({ type, buffer, source: this });
  return buffer;
};

for (const name of ['loadedmetadata', 'playing', 'waiting', 'stalled', 'seeked', 'ended', 'resize']) {
  video.addEventListener(name, () => {
    note(name, name === 'resize' ? `${video.videoWidth}x${video.videoHeight}` : video.currentTime.toFixed(3));
  });
}
video.addEventListener('error', () => fail('video', `${video.error.code} ${video.error.message}`, true));

/** Counts the frames that were shown, by their size. */
function shown(_, frame) {
  const size = `${frame.width}x${frame.height}`;
  record.frames[size] = (record.frames[size] ?? 0) + 1;
  video.requestVideoFrameCallback(shown);
}
video.requestVideoFrameCallback(shown);

// Both keep the whole clip: what was buffered stays to be measured.
const KEEP_S = 120;
// A busy machine stands still for a second or two by itself; a stream that makes a player stand still does so for good,
// or the player jumps, which is an error.
const STALL_S = 5;
const AHEAD_S = 0.5;
const STALLS = ['bufferStalledError', 'bufferNudgeOnStall'];

// `level` is the one quality to use, as `levels` names it; without it the player chooses as it goes.

function hls() {
  const { Events } = Hls;
  const keep = { maxBufferLength: KEEP_S, maxMaxBufferLength: KEEP_S, backBufferLength: KEEP_S };
  const player = new Hls({ ...keep, autoStartLoad: false, detectStallWithCurrentTimeMs: STALL_S * 1000 });
  player.on(Events.ERROR, (_, data) => {
    // It takes every `waiting` of the video element for a stall, also that of a decoder which has no time. With data
    // ahead it nudges and goes on; where that does not help it gives up, which is fatal.
    if (STALLS.includes(data.details) && !data.fatal && data.buffer >= AHEAD_S) {
      note('stalled', `${data.buffer.toFixed(3)} s in the buffer`);
      return;
    }
    const about = data.error?.message ?? data.reason ?? '';
    fail('hls.js', `${data.type} ${data.details} ${data.frag?.relurl ?? ''} ${about}`.trim(), data.fatal);
  });
  for (const name of ['MANIFEST_PARSED', 'LEVEL_SWITCHED', 'BUFFER_EOS', 'FRAG_BUFFERED']) {
    player.on(Events[name], (_, data) => note(name, data.frag?.relurl ?? data.level));
  }
  return {
    async load(url, level) {
      const parsed = new Promise((resolve) => player.once(Events.MANIFEST_PARSED, resolve));
      player.attachMedia(video);
      player.loadSource(url);
      await parsed;
      if (level) player.loadLevel = level.place;
      player.startLoad(0);
    },
    levels: () => player.levels.map(({ width, height, bitrate }, place) => ({ place, width, height, bitrate })),
    end: () => player.destroy(),
  };
}

function shakaPlayer() {
  shaka.polyfill.installAll();
  const player = new shaka.Player();
  player.configure({ streaming: { bufferingGoal: KEEP_S, bufferBehind: KEEP_S, stallThreshold: STALL_S } });
  player.addEventListener('error', ({ detail }) => {
    fail('shaka', `${detail.code} ${detail.message}`, detail.severity === shaka.util.Error.Severity.CRITICAL);
  });
  for (const name of ['adaptation', 'variantchanged', 'segmentappended']) {
    player.addEventListener(name, (event) => note(name, event.start?.toFixed?.(3)));
  }
  // It jumps over gaps by itself and plays on, which nobody would see: here that is an error.
  for (const name of ['gapjumped', 'stalldetected']) {
    player.addEventListener(name, () => fail('shaka', `${name} at ${video.currentTime}`, false));
  }
  // Its qualities are told apart by their lines: a ladder has one of each.
  const tracks = () => player.getVariantTracks().sort((a, b) => a.bandwidth - b.bandwidth);
  return {
    async load(url, level) {
      if (level?.height) {
        player.configure({ restrictions: { minHeight: level.height, maxHeight: level.height } });
      }
      await player.attach(video);
      // What it throws has a number and no message.
      await player.load(url).catch((error) => fail('shaka', `${error.code} ${error.data}`, true));
    },
    levels: () =>
      tracks().map(({ width, height, bandwidth }, place) => ({ place, width, height, bitrate: bandwidth })),
    end: () => player.destroy(),
  };
}

const players = { hls, shaka: shakaPlayer };
let player;

const ranges = (buffered) =>
  Array.from({ length: buffered.length }, (_, n) => [buffered.start(n), buffered.end(n)]);

/** What is buffered now, as a whole and in each SourceBuffer. */
function buffered() {
  return {
    video: ranges(video.buffered),
    sources: buffers.map(({ type, buffer }) => ({ type, ranges: ranges(buffer.buffered) })),
  };
}

/** Goes to an instant and waits for the frame that is shown there; it is decoded anew, from what is buffered now. */
async function goTo(at) {
  const frame = new Promise((resolve) => video.requestVideoFrameCallback((_, about) => resolve(about)));
  video.pause();
  video.currentTime = at;
  const { mediaTime, width, height } = await frame;
  return { at, mediaTime, width, height };
}

/** The lightness (0 to 255) of the frame that is shown at an instant, beside what `goTo` says of it. */
async function look(at) {
  const frame = await goTo(at);
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  canvas.drawImage(video, 0, 0, 1, 1);
  const [red, green, blue] = canvas.getImageData(0, 0, 1, 1).data;
  return { ...frame, lightness: Math.round((red + green + blue) / 3) };
}

window.stage = {
  record,
  buffered,
  goTo,
  look,
  async load(name, url, level) {
    await player?.end();
    buffers.length = 0;
    player = players[name]();
    await player.load(url, level);
  },
  levels: () => player.levels(),
  async play(rate) {
    video.playbackRate = rate;
    await video.play();
  },
  /** Whether all is buffered: the players end the stream then. */
  isWhole() {
    return buffers.length > 0 && buffers.every(({ buffer, source }) => source.readyState === 'ended' && !buffer.updating);
  },
  status() {
    const { ended, duration, currentTime, readyState, videoWidth, videoHeight } = video;
    const { totalVideoFrames, droppedVideoFrames } = video.getVideoPlaybackQuality();
    return {
      ended,
      duration,
      currentTime,
      readyState,
      videoWidth,
      videoHeight,
      decodedFrames: totalVideoFrames,
      droppedFrames: droppedVideoFrames,
      decodedAudioBytes: video.webkitAudioDecodedByteCount,
      decodedVideoBytes: video.webkitVideoDecodedByteCount,
    };
  },
};
