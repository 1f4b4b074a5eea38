// What a page says and asks for, whoever's page it is.

/** Records console errors, uncaught errors, and every request: those that failed, and all origins that were asked. */
export function watch(page) {
  const seen = { console: [], failed: [], aborted: [], origins: [] };
  const origins = new Set();
  page.on('console', (message) => {
    if (message.type() === 'error') seen.console.push(`${message.text()} ${message.location().url ?? ''}`.trim());
  });
  page.on('pageerror', (error) => seen.console.push(`uncaught: ${error.stack ?? error}`));
  page.on('request', (request) => {
    const { protocol, origin } = new URL(request.url());
    if (protocol.startsWith('http') || protocol.startsWith('ws')) origins.add(origin);
    seen.origins = [...origins];
  });
  page.on('requestfailed', (request) => {
    const what = `${request.method()} ${request.url()} ${request.failure()?.errorText ?? ''}`;
    // A player that changes its mind about a quality gives up what it was loading; that is no failure of the server's.
    (what.endsWith('net::ERR_ABORTED') ? seen.aborted : seen.failed).push(what);
  });
  page.on('response', (response) => {
    if (response.status() >= 400) seen.failed.push(`${response.request().method()} ${response.url()} ${response.status()}`);
  });
  return seen;
}

/** Asks `condition()` until it answers with something true; names what was waited for when that takes too long. */
export async function until(what, limitMs, condition) {
  const deadline = Date.now() + limitMs;
  for (;;) {
    const answer = await condition();
    if (answer) return answer;
    if (Date.now() > deadline) throw new Error(`never saw: ${what} (waited ${limitMs / 1000} s)`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
