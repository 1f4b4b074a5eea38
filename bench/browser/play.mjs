// Plays one stream to its end in Chromium and prints what happened as one JSON object; judging it is the caller's.
//
//   node play.mjs --player hls|shaka --url URL --out DIR [--name NAME] [--look SECONDS,SECONDS,…]
//
// First the whole stream as the player likes it (at four times the speed), then every quality on its own, buffered from
// 0 to the end. The exit code is 0 when that could be done, whatever was seen on the way.

import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { withBrowser } from './chromium.mjs';
import { start } from './site.mjs';
import { until, watch } from './watch.mjs';

const RATE = 4;
const HAVE_FUTURE_DATA = 3;
// Longest waits. The player's own time-outs are shorter, so that its error is heard before ours.
const LOAD_MS = 20_000;
const STALL_MS = 10_000;
const LEVEL_MS = 15_000;
const ALL_MS = 75_000;

const { values: options } = parseArgs({
  options: {
    player: { type: 'string' },
    url: { type: 'string' },
    out: { type: 'string' },
    name: { type: 'string' },
    look: { type: 'string', default: '' },
  },
});
if (!['hls', 'shaka'].includes(options.player) || !options.url || !options.out) {
  console.error('usage: play.mjs --player hls|shaka --url URL --out DIR [--name NAME] [--look SECONDS,…]');
  process.exit(2);
}
const name = options.name ?? options.player;
await mkdir(options.out, { recursive: true });

const result = { player: options.player, url: options.url, finished: false, screenshot: null, levels: [], looks: [] };
const site = await start();
try {
  await withBrowser(ALL_MS, play);
  result.finished = true;
} catch (error) {
  result.failure = String(error?.message ?? error);
} finally {
  site.close();
}
const text = JSON.stringify(result, null, 2);
await writeFile(join(options.out, `${name}.json`), text);
console.log(text);
process.exitCode = result.finished ? 0 : 1;

async function play(browser) {
  result.browser = browser.version();
  const page = await browser.newPage({ viewport: { width: 854, height: 480 } });
  result.requests = watch(page);
  // Read as it goes: a page that hangs later cannot be asked any more.
  const read = async () => Object.assign(result, await page.evaluate(() => stage.record));
  const status = () => page.evaluate(() => stage.status());
  await page.goto(site.origin);
  try {
    await loaded(page);
    await playedThrough(page, status);
    for (const level of await page.evaluate(() => stage.levels())) {
      result.levels.push(await alone(page, status, level));
    }
    for (const at of options.look.split(',').filter(Boolean).map(Number)) {
      result.looks.push(await page.evaluate((at) => stage.look(at), at));
    }
  } finally {
    await read();
  }
}

async function loaded(page, level) {
  const { player, url } = options;
  await Promise.race([
    page.evaluate(({ player, url, level }) => stage.load(player, url, level), { player, url, level }),
    until('a loaded stream', LOAD_MS, () => stopped(page)),
  ]);
  await throwIfStopped(page);
}

/** Whether the player has given up. */
async function stopped(page) {
  return page.evaluate(() => stage.record.errors.some((error) => error.fatal));
}

async function throwIfStopped(page) {
  const fatal = await page.evaluate(() => stage.record.errors.find((error) => error.fatal));
  if (fatal) throw new Error(`${fatal.from} gave up: ${fatal.what}`);
}

async function playedThrough(page, status) {
  await until('something to play', LOAD_MS, async () => {
    await throwIfStopped(page);
    return (await status()).readyState >= HAVE_FUTURE_DATA;
  });
  await page.evaluate((rate) => stage.play(rate), RATE);
  let [furthest, movedAt] = [-1, Date.now()];
  for (;;) {
    const now = await status();
    await throwIfStopped(page);
    if (now.ended) break;
    if (now.currentTime > furthest) [furthest, movedAt] = [now.currentTime, Date.now()];
    if (!result.screenshot && now.currentTime >= now.duration / 2) {
      result.screenshot = join(options.out, `${name}.png`);
      await page.screenshot({ path: result.screenshot });
    }
    if (Date.now() - movedAt > STALL_MS) {
      result.played = { ...now, buffered: await page.evaluate(() => stage.buffered()) };
      throw new Error(`playback stands still at ${now.currentTime.toFixed(3)} of ${now.duration} s`);
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  result.played = { ...(await status()), buffered: await page.evaluate(() => stage.buffered()) };
}

/** One quality alone, in a player of its own: all of it in the buffer, and the size of a frame from its middle. */
async function alone(page, status, level) {
  await loaded(page, level);
  await until(`all of quality ${JSON.stringify(level)} in the buffer`, LEVEL_MS, async () => {
    await throwIfStopped(page);
    return page.evaluate(() => stage.isWhole());
  });
  const buffered = await page.evaluate(() => stage.buffered());
  const { duration } = await status();
  const frame = level.height ? await page.evaluate((at) => stage.goTo(at), duration / 2) : null;
  const { videoWidth, videoHeight } = await status();
  return { ...level, duration, videoWidth, videoHeight, frame, buffered };
}
