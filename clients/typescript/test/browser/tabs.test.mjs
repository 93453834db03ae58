// Several tabs with one connection, in a real Chromium, at a real edge: `wirepost dev` (WIREPOST names the program).
// Each tab is a frame of one page: frames of an origin share locks and channels as tabs do.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { openPage } from '../drivers/browser.mjs';
import { dev, until } from '../drivers/dev.mjs';

test('tabs share a connection, and another one takes over without a loss', { timeout: 120_000 }, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'wirepost-tabs-'));
  let edge;
  const key = { 'x-api-key': 'dev-tabs' };
  let tokens = 0;
  const events = [];
  const page = await openPage({
    files: { '/': 'frames.html', '/tabs.html': 'tabs.html' },
    onSay: (event) => events.push(event),
    answer: async (request, response) => {
      if (request.url !== '/token') return false;
      tokens++;
      const answer = await fetch(`${edge}/tabs/websocket/token?uniqueId=alice&clientType=h5`, { headers: key });
      response.writeHead(answer.status, { 'content-type': 'application/json' });
      return response.end(await answer.text());
    },
  });
  writeFileSync(
    join(folder, 'tabs.yaml'),
    `apiVersion: wirepost.dev/v1alpha1
kind: WsBusiness
metadata: {name: tabs, namespace: test}
spec:
  clientTypes: [h5]
  routes:
    - {messageType: payment.completed, sendType: ServerToClient, to: [h5]}
    - {messageType: order.placed, sendType: ClientToServer, queue: {name: orders}}
  auth: {allowedOrigins: ["${page.origin}"]}
`,
  );
  t.after(() => {
    page.end();
    rmSync(folder, { recursive: true, force: true });
  });
  edge = await dev(t, folder, 'tabs');
  const push = async (n) => {
    const body = JSON.stringify({ messageType: 'payment.completed', toUniqueId: 'alice', content: { n } });
    const answer = await fetch(`${edge}/tabs/websocket/messages`, { method: 'POST', headers: key, body });
    assert.equal(answer.status, 200, await answer.text());
  };
  const of = (name, field) => events.filter((event) => event.name === name && field in event).map((event) => event[field]);
  const tell = (to, more) => page.say(JSON.stringify({ to, ...more }));

  page.open();
  const tabs = ['a', 'b', 'c'];
  for (const name of tabs) tell(undefined, { open: name });
  await until('all are open', () => tabs.every((name) => of(name, 'state').at(-1) === 'open'));
  assert.equal(tokens, 1, 'one tab connects');
  await push(1);
  await until('all have it', () => tabs.every((name) => of(name, 'got').length === 1));

  for (const name of tabs) tell(name, { ask: true });
  await until('all say who leads', () => tabs.every((name) => of(name, 'leads').length === 1));
  const leader = tabs.find((name) => of(name, 'leads')[0]);
  const others = tabs.filter((name) => name !== leader);
  assert.equal(others.length, 2);
  for (const [n, name] of tabs.entries()) tell(name, { send: n });
  await until('all have sent', () => tabs.every((name) => of(name, 'sent').length === 1));

  for (const name of tabs) tell(name, { odd: true });
  await until('odd contents are sent or refused, in every tab', () => tabs.every((name) => of(name, 'rejected').length === 2));
  for (const name of tabs) {
    assert.equal(of(name, 'sent').at(-1), 'odd', name);
    assert.deepEqual(of(name, 'rejected'), ['TypeError', 'invalid_envelope'], name);
  }

  // The user closes the tab that holds the connection.
  tell(undefined, { remove: leader });
  await push(2);
  tell(others[0], { send: 7 });
  await push(3);
  await until('the others go on', () => others.every((name) => of(name, 'got').length >= 3));
  await until('and send', () => of(others[0], 'sent').includes(7));
  await push(4);
  await until('the others go on', () => others.every((name) => of(name, 'got').length >= 4));
  for (const name of others) assert.deepEqual(of(name, 'got'), [1, 2, 3, 4], name);
  assert.deepEqual(events.filter((event) => event.gap), []);
  assert.equal(tokens, 2);
  // Both ends: one that leads, and one that does not.
  for (const name of others) tell(name, { close: true, send: 8 });
  await until('they are closed', () => others.every((name) => of(name, 'closed').length === 1));
  assert.deepEqual(others.map((name) => of(name, 'closed')), [['closed'], ['closed']]);
  assert.deepEqual(events.filter((event) => event.unhandled), []);
});
