// A web site on loopback with the players' page and nothing else. Its origin is another one than the gateway's, as with
// anybody who embeds a player: without the gateway's CORS headers nothing plays here.

import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';

const here = (path) => new URL(path, import.meta.url);
const FILES = {
  '/': [here('player.html'), 'text/html; charset=utf-8'],
  '/player.js': [here('player.js'), 'text/javascript; charset=utf-8'],
  '/hls.js': [here('node_modules/hls.js/dist/hls.min.js'), 'text/javascript; charset=utf-8'],
  '/shaka.js': [here('node_modules/shaka-player/dist/shaka-player.compiled.js'), 'text/javascript; charset=utf-8'],
};

/** Starts it; `origin` is its address. */
export async function start() {
  const server = createServer(async (request, response) => {
    const file = FILES[new URL(request.url, 'http://site').pathname];
    if (!file) {
      response.writeHead(404).end();
      return;
    }
    try {
      const bytes = await readFile(file[0]);
      response.writeHead(200, { 'content-type': file[1] }).end(bytes);
    } catch (error) {
      response.writeHead(500).end(String(error));
    }
  });
  await new Promise((resolve, reject) => server.once('error', reject).listen(0, '127.0.0.1', resolve));
  return {
    origin: `http://127.0.0.1:${server.address().port}`,
    close() {
      server.closeAllConnections();
      server.close();
    },
  };
}
