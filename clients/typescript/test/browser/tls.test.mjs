// A page that makes its token call by fetch() and opens its socket by wss, in a real Chromium, at an edge with TLS and no
// proxy in front (`wirepost dev --tls`; WIREPOST names the program). A browser offers HTTP/2 for the call: if it got that,
// its socket might be asked for by HTTP/2 as well.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { X509Certificate, createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { openBrowser } from '../drivers/cdp.mjs';

const declaration = (origin) => `
apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: shop, namespace: shop}
spec:
  clientTypes: [app]
  routes: [{messageType: order, sendType: ClientToServer, queue: {name: orders}}]
  auth: {allowedOrigins: ["${origin}"]}
`;

/** An origin of a page that shows nothing. */
async function pages(t) {
  const server = createServer((request, response) => response.writeHead(200, { 'content-type': 'text/html' }).end('<p>shop</p>'));
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => server.close() && server.closeAllConnections());
  return `http://127.0.0.1:${server.address().port}`;
}

/** Resolves with the edge's address, and the hash of its key. */
async function start(t, origin) {
  const folder = mkdtempSync(join(tmpdir(), 'wirepost-tls-'));
  writeFileSync(join(folder, 'shop.yaml'), declaration(origin));
  const flags = ['--tls', '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0', join(folder, 'shop.yaml')];
  const dev = spawn(process.env.WIREPOST, ['dev', ...flags], { env: { ...process.env, XDG_CACHE_HOME: folder } });
  t.after(() => {
    dev.kill();
    rmSync(folder, { recursive: true, force: true });
  });
  const edge = await new Promise((resolve, reject) => {
    let printed = '';
    const read = (text) => {
      printed += text;
      const url = /https:\/\/[^/\s]+/.exec(printed)?.[0];
      if (url && printed.includes('  queues ')) resolve(url);
    };
    dev.stdout.setEncoding('utf8').on('data', read);
    dev.stderr.setEncoding('utf8').on('data', read);
    dev.on('error', reject);
    dev.on('exit', () => reject(new Error(`wirepost dev ended: ${printed}`)));
  });
  const certificate = new X509Certificate(readFileSync(join(folder, 'wirepost/dev-tls/localhost.crt')));
  const key = certificate.publicKey.export({ type: 'spki', format: 'der' });
  return { edge, hash: createHash('sha256').update(key).digest('base64') };
}

/** In the page: a token call, and the socket that it leads to, with the token in the path or as a subprotocol. */
async function connect(edge, inPath) {
  const answer = await fetch(`${edge}/shop/websocket/token?uniqueId=alice&clientType=app`, { headers: { authorization: 'Bearer dev-shop' } });
  const { data } = await answer.json();
  const [base, token] = data.split('/socket/');
  const socket = inPath ? new WebSocket(data, 'wirepost.v1') : new WebSocket(`${base}/socket`, ['wirepost.v1', `wirepost.token.${token}`]);
  const got = [];
  return new Promise((resolve) => {
    socket.onmessage = ({ data }) => {
      const frame = JSON.parse(data);
      got.push(frame.op);
      if (frame.op === 'welcome') socket.send(JSON.stringify({ id: 'o-1', messageType: 'order', content: {} }));
      if (frame.op === 'ack' || frame.op === 'nack') resolve({ url: new URL(socket.url).protocol, got });
    };
    socket.onclose = ({ code, reason }) => resolve({ closed: code, reason, got });
  });
}

test('a page calls by https and opens a wss socket at an edge with TLS', { timeout: 120_000 }, async (t) => {
  const origin = await pages(t);
  const { edge, hash } = await start(t, origin);
  const page = await openBrowser(`--ignore-certificate-errors-spki-list=${hash}`);
  t.after(page.close);
  await page.send('Network.enable');
  await page.open(origin);
  await page.until('the page is there', (origin) => location.origin === origin && document.readyState === 'complete', origin);
  for (const inPath of [false, true, false]) {
    const { url, got, ...rest } = await page.run(connect, edge, inPath);
    assert.deepEqual(rest, {}, 'it was closed');
    assert.equal(url, 'wss:');
    assert.equal(got[0], 'welcome');
    assert.equal(got.at(-1), 'ack');
  }
  const calls = page.responses.filter(({ url }) => url.includes('/websocket/token'));
  assert.equal(calls.length >= 3, true, `${calls.length} token calls`);
  // The edge offers nothing else by ALPN.
  assert.deepEqual([...new Set(calls.map(({ protocol }) => protocol))], ['http/1.1']);
  assert.deepEqual(page.problems, []);
});
