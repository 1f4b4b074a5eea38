// Starts the system's own Chromium, and makes sure that it ends.

import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';
import { chromium } from 'playwright-core';

const NAMES = ['chromium', 'chromium-browser', 'google-chrome'];

// No update check, no sync, no QUIC: a test's browser talks to the test and to nobody else.
const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--autoplay-policy=no-user-gesture-required',
];

function runnable(path) {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** The browser's path: MILLRACE_CHROMIUM, else the first of the usual names in PATH. */
export function executable() {
  const named = process.env.MILLRACE_CHROMIUM;
  if (named) {
    if (runnable(named)) return named;
    throw new Error(`MILLRACE_CHROMIUM names ${named}, which is no program`);
  }
  const directories = (process.env.PATH ?? '').split(delimiter);
  const found = NAMES.flatMap((name) => directories.map((directory) => join(directory, name))).find(runnable);
  if (found) return found;
  throw new Error(`no ${NAMES.join(', ')} in PATH: run \`scripts/setup test\`, or name one in MILLRACE_CHROMIUM`);
}

/** Starts it with a fresh profile. It listens on a pipe of this process and ends with it, even by kill -9. */
export function launch() {
  return chromium.launch({ executablePath: executable(), headless: true, args: FLAGS, timeout: 30_000 });
}

/**
 * Runs `work(browser)` and ends the browser however that ends; what takes longer than `limitMs` is an error.
 */
export async function withBrowser(limitMs, work) {
  const browser = await launch();
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done after ${limitMs / 1000} s`)), limitMs);
  });
  try {
    return await Promise.race([work(browser), late]);
  } finally {
    clearTimeout(timer);
    await browser.close();
  }
}
