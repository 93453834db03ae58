// A headless Chromium with one page, and a line to it: what the page says arrives here, and the other way round.
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { WebSocketServer } from 'ws';

const dist = fileURLToPath(new URL('../../dist/', import.meta.url));

/**
 * `files` are further files of the server by path; `answer` answers other requests, or says no. Chromium is CHROMIUM, or
 * /usr/bin/chromium. `onSay` gets what the page says, `onEnd` the end of page or browser.
 */
export async function openPage({ files = {}, answer = () => false, onSay, onEnd }) {
  const all = new Map(readdirSync(dist).filter((file) => file.endsWith('.js')).map((file) => [`/dist/${file}`, join(dist, file)]));
  for (const [path, file] of Object.entries(files)) all.set(path, fileURLToPath(new URL(file, import.meta.url)));
  const server = createServer(async (request, response) => {
    const file = all.get(request.url.split('?')[0]);
    if (!file) return (await answer(request, response)) || response.writeHead(404).end();
    response.writeHead(200, { 'content-type': file.endsWith('.html') ? 'text/html' : 'text/javascript' });
    return response.end(readFileSync(file));
  });
  const line = new WebSocketServer({ server });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const origin = `http://127.0.0.1:${server.address().port}`;

  const profile = mkdtempSync(join(tmpdir(), 'wirepost-chromium-'));
  let chromium;
  let ended = false;
  const end = () => {
    if (ended) return;
    ended = true;
    server.close();
    server.closeAllConnections();
    line.close();
    const done = () => {
      try {
        rmSync(profile, { recursive: true, force: true, maxRetries: 10, retryDelay: 50 });
      } catch (error) {
        // Its children end after it and still write: no fault of what was tested.
        process.stderr.write(`${profile} stays: ${error}\n`);
      }
      onEnd?.();
    };
    if (!chromium || chromium.exitCode !== null) return done();
    chromium.once('exit', done);
    chromium.kill('SIGKILL');
  };
  const connected = new Promise((resolve) => line.once('connection', resolve));
  const open = () => {
    chromium = spawn(process.env.CHROMIUM || '/usr/bin/chromium', [
      '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--js-flags=--expose-gc',
      '--enable-precise-memory-info', // It ends with this process: when these pipes close.
      '--remote-debugging-pipe', `--user-data-dir=${profile}`, `${origin}/`,
    ], { stdio: ['ignore', 'ignore', process.env.CHROMIUM_LOG ? 'inherit' : 'ignore', 'pipe', 'pipe'] });
    chromium.on('error', (error) => {
      process.stderr.write(`Chromium can't be started: ${error}\n`);
      end();
    });
    chromium.on('exit', (code) => {
      if (!ended) process.stderr.write(`Chromium ended with ${code}\n`);
      end();
    });
  };
  const waiting = [];
  let socket;
  connected.then((page) => {
    socket = page;
    for (const text of waiting.splice(0)) page.send(text);
    page.on('message', (data) => onSay(JSON.parse(data)));
    page.on('close', end);
  });
  return { origin, open, end, say: (text) => (socket ? socket.send(text) : waiting.push(text)) };
}
