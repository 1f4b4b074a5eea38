// Uses the gateway's page as a person would and prints what happened as one JSON object; judging it is the caller's.
//
//   node page.mjs --url GATEWAY --admin ADMIN --file CLIP --out DIR
//
// Drops the clip on the page and sends it, watches its job, plays the result, then looks at the operator's page; with
// screenshots in light and dark, wide and narrow. The exit code is 0 when all of it could be done.

import { mkdir, readFile, stat, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { withBrowser } from './chromium.mjs';
import { until, watch } from './watch.mjs';

const ALL_MS = 90_000;
const LOAD_MS = 10_000;
const JOB_MS = 60_000;
const PLAY_MS = 30_000;
const RATE = 4;
/** How long the upload shall take: on loopback it would be over before the page could show it. */
const UPLOAD_S = 2;
const WIDE = { width: 1280, height: 900 };
const NARROW = { width: 390, height: 844 };

const { values: options } = parseArgs({
  options: { url: { type: 'string' }, admin: { type: 'string' }, file: { type: 'string' }, out: { type: 'string' } },
});
if (!options.url || !options.admin || !options.file || !options.out) {
  console.error('usage: page.mjs --url GATEWAY --admin ADMIN --file CLIP --out DIR');
  process.exit(2);
}
await mkdir(options.out, { recursive: true });
const axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

const result = {
  failure: null,
  upload: [],
  progress: [],
  states: [],
  jobs: 0,
  ended: false,
  playedS: 0,
  pools: [],
  overflow: [],
  violations: [],
  screenshots: [],
};
try {
  await withBrowser(ALL_MS, visit);
} catch (error) {
  result.failure = String(error?.message ?? error);
}
const text = JSON.stringify(result, null, 2);
await writeFile(join(options.out, 'page.json'), text);
console.log(text);
process.exitCode = result.failure ? 1 : 0;

async function visit(browser) {
  const page = await browser.newPage({ viewport: WIDE });
  result.requests = watch(page);
  await page.addInitScript(observe);
  await page.goto(options.url);
  try {
    await send(page);
    await job(page);
    await play(page);
    await looks(page, 'job');
  } catch (error) {
    await shoot(page, 'failed');
    throw error;
  } finally {
    Object.assign(result, await page.evaluate(() => window.observed));
  }
  await page.goto(options.admin);
  await page.setViewportSize(WIDE);
  await page.getByTestId('pool').first().waitFor({ timeout: LOAD_MS });
  result.pools = await page.getByTestId('pool').evaluateAll((rows) => rows.map((row) => row.dataset.pool).sort());
  await looks(page, 'operator');
}

/** Runs in the page, before its own scripts: keeps every value that was seen of the bars and of the job's state. */
function observe() {
  const observed = { upload: [], progress: [], states: [] };
  window.observed = observed;
  const keep = (list, value) => {
    if (value !== undefined && list.at(-1) !== value) list.push(value);
  };
  const share = (bar) => {
    const seen = bar?.checkVisibility() && bar.hasAttribute('value');
    return seen ? Math.round((bar.value / bar.max) * 100) : undefined;
  };
  const find = (name) => [...document.querySelectorAll(`[data-testid=${name}]`)];
  new MutationObserver(() => {
    const [card] = find('job-card');
    // The list has a bar of its own, which is asked for by itself: the two may be a moment apart.
    const bar = find('job-progress').find((bar) => !bar.closest('[data-testid=job-card]'));
    keep(observed.upload, share(find('upload-progress')[0]));
    keep(observed.progress, share(bar));
    keep(observed.states, card?.dataset.state);
  }).observe(document, { subtree: true, childList: true, attributes: true });
}

/** Fails with what the page complains about. */
async function throwIfComplaining(page) {
  const complaints = await page.getByTestId('error').allTextContents();
  if (complaints.length > 0) throw new Error(`the page says: ${complaints.join(' | ')}`);
}

async function send(page) {
  const { size } = await stat(options.file);
  const network = await page.context().newCDPSession(page);
  const slow = { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput: size / UPLOAD_S };
  await drop(page, network);
  await network.send('Network.enable');
  await network.send('Network.emulateNetworkConditions', slow);
  await page.getByTestId('submit').click();
  await page.getByTestId('upload-progress').first().waitFor({ timeout: LOAD_MS });
  await shoot(page, 'upload');
  // Chosen while another is sent: it waits until it is asked for.
  await page.getByTestId('file-input').setInputFiles(options.file);
  const card = page.getByTestId('job-card').first();
  await until('the job in the list', JOB_MS, async () => {
    await throwIfComplaining(page);
    return (await card.count()) > 0;
  });
  await network.send('Network.emulateNetworkConditions', { ...slow, uploadThroughput: -1 });
  result.jobId = await card.getAttribute('data-job-id');
}

/** Drags the clip over the page and lets it go there, through the browser's own input: beside the box, which takes it as well. */
async function drop(page, browser) {
  const data = { items: [], files: [options.file], dragOperationsMask: 1 };
  const drag = (type) => browser.send('Input.dispatchDragEvent', { type, x: 5, y: 5, data });
  const box = page.locator('#drop.over');
  await drag('dragEnter');
  await drag('dragOver');
  await until('the box that takes it', LOAD_MS, async () => (await box.count()) === 1);
  await drag('drop');
  await until('the dropped file', LOAD_MS, async () => (await page.locator('#queue li').count()) === 1);
  if ((await box.count()) > 0) throw new Error('the box still waits for what was dropped');
}

async function job(page) {
  const card = page.locator(`[data-testid=job-card][data-job-id="${result.jobId}"]`);
  await until('its success', JOB_MS, async () => {
    await throwIfComplaining(page);
    const state = await card.getAttribute('data-state');
    if (['failed', 'dead', 'cancelled'].includes(state)) throw new Error(`the job is ${state}`);
    return state === 'succeeded';
  });
  result.jobs = await page.getByTestId('job-card').count();
  await page.getByRole('button', { name: 'Remove' }).click();
}

async function play(page) {
  const player = page.getByTestId('player');
  if ((await player.count()) === 0) await page.getByTestId('job-card').first().getByRole('link').click();
  await player.waitFor({ timeout: LOAD_MS });
  await player.evaluate((media, rate) => {
    media.muted = true;
    media.playbackRate = rate;
    return media.play();
  }, RATE);
  await until('the middle', PLAY_MS, () => player.evaluate((media) => media.currentTime >= media.duration / 2));
  await shoot(page, 'playing');
  await until('the end of playback', PLAY_MS, async () => {
    await throwIfComplaining(page);
    return player.evaluate((media) => media.ended);
  });
  result.ended = true;
  result.playedS = await player.evaluate((media) => media.currentTime);
}

/** The page as it is in light and dark, wide and narrow: pictures of it, what sticks out, and what axe finds. */
async function looks(page, name) {
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    for (const [width, viewport] of [['wide', WIDE], ['narrow', NARROW]]) {
      await page.setViewportSize(viewport);
      const where = `${name}-${colorScheme}-${width}`;
      await shoot(page, where);
      result.overflow.push(...(await page.evaluate(sticksOut)).map((what) => `${where}: ${what}`));
    }
    result.violations.push(...(await violations(page)).map((what) => `${name}-${colorScheme}: ${what}`));
  }
}

/** Runs in the page. What scrolls by itself, as a wide table may, is no fault. */
function sticksOut() {
  if (document.scrollingElement.scrollWidth <= innerWidth) return [];
  const wide = [...document.body.querySelectorAll('*')].filter((one) => one.getBoundingClientRect().right > innerWidth + 1);
  return [`the page is ${document.scrollingElement.scrollWidth} px wide: ${wide.map((one) => one.outerHTML.slice(0, 80)).slice(0, 3)}`];
}

async function violations(page) {
  // Evaluated and not added as a script: the page's own policy refuses foreign scripts, and shall.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run());
  return violations
    .filter(({ impact }) => ['serious', 'critical'].includes(impact))
    .map(({ id, impact, nodes }) => `${impact} ${id}: ${nodes.map((node) => node.html.slice(0, 120)).slice(0, 3).join(' | ')}`);
}

async function shoot(page, name) {
  const path = join(options.out, `page-${name}.png`);
  await page.screenshot({ path, fullPage: name !== 'playing' });
  result.screenshots.push(path);
}
