// Stores of a browser, and the React hooks, in a real Chromium.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { build } from 'esbuild';
import { openPage } from '../drivers/browser.mjs';

const PAGE = `
import { StrictMode, createElement } from 'react';
import { createRoot } from 'react-dom/client';
import { indexedDbStore, sessionStore } from './dist/index.js';
import { useWirepostMessage, useWirepostReload, useWirepostState } from './dist/react.js';

const until = async (condition) => {
  for (let n = 0; n < 500 && !condition(); n++) await new Promise((resolve) => setTimeout(resolve, 10));
};

async function stores() {
  const result = {};
  for (const [name, make] of [['indexedDb', indexedDbStore], ['session', sessionStore]]) {
    result[name] = [(await make('alice').get()) ?? null];
    await make('alice').set('c1');
    await Promise.all([make('alice').set('c2'), make('bob').set('b1')]);
    result[name].push(await make('alice').get(), await make('bob').get());
  }
  return result;
}

/** An IndexedDB connection that a browser ends, and a database that is deleted: the store opens it again. */
async function lost() {
  const opened = [];
  const open = indexedDB.open.bind(indexedDB);
  indexedDB.open = (...database) => {
    const request = open(...database);
    request.addEventListener('success', () => opened.push(request.result));
    return request;
  };
  const store = indexedDbStore('carol', 'lost');
  await store.set('c1');
  opened[0].close();
  await store.set('c2');
  opened[1].close();
  const result = [await store.get()];
  await new Promise((resolve, reject) => Object.assign(indexedDB.deleteDatabase('lost'), { onsuccess: resolve, onerror: reject, onblocked: reject }));
  await store.set('c3');
  result.push(await store.get(), opened.length);
  delete indexedDB.open;
  return result;
}

/** A client that the test commands. */
function client() {
  const sets = { message: new Set(), gap: new Set(), state: new Set() };
  const add = (set) => (handler) => (sets[set].add(handler), () => sets[set].delete(handler));
  return {
    state: 'connecting',
    sets,
    on: (pattern, handler) => add('message')(handler),
    onGap: add('gap'),
    onState: add('state'),
    set(state) {
      this.state = state;
      for (const handler of [...sets.state]) handler(state);
    },
  };
}

async function hooks() {
  const one = client();
  const loads = [];
  const got = [];
  let render = 0;
  function Screen() {
    const now = ++render;
    const state = useWirepostState(one);
    useWirepostReload(one, () => loads.push(state));
    useWirepostMessage(one, 'a.b', (message) => got.push([message.content, now === render]));
    return createElement('p', { id: 'state' }, state);
  }
  const place = document.body.appendChild(document.createElement('div'));
  const root = createRoot(place);
  root.render(createElement(StrictMode, null, createElement(Screen)));
  const shown = () => document.querySelector('#state')?.textContent;
  await until(() => shown() === 'connecting' && one.sets.message.size === 1);
  one.set('open');
  await until(() => shown() === 'open');
  for (const handler of one.sets.message) handler({ content: 1 });
  for (const handler of one.sets.gap) handler({ reason: 'retention' });
  one.set('waiting');
  await until(() => shown() === 'waiting');
  one.set('open');
  await until(() => shown() === 'open');
  const during = [...Object.values(one.sets)].map(({ size }) => size);
  root.unmount();
  const after = [...Object.values(one.sets)].map(({ size }) => size);
  return { loads: loads.length, got: got.map(([content]) => content), during, after };
}

/** Loads that fail, immediately and later: they are tried again, and nothing is unhandled. */
async function failing() {
  const unhandled = [];
  addEventListener('unhandledrejection', ({ reason }) => unhandled.push(String(reason)));
  const one = client();
  one.set('open');
  let loads = 0;
  function Screen() {
    useWirepostReload(one, () => {
      loads++;
      if (loads === 1 || loads === 4) throw new Error('immediately');
      if (loads === 2 || loads === 5) return Promise.reject(new Error('later'));
    });
    return null;
  }
  const root = createRoot(document.body.appendChild(document.createElement('div')));
  root.render(createElement(Screen));
  await until(() => loads === 3);
  for (const handler of one.sets.gap) await handler({ reason: 'retention' });
  await until(() => loads === 5);
  root.unmount();
  await new Promise((resolve) => setTimeout(resolve, 1500));
  return { loads, unhandled };
}

const line = new WebSocket('ws://' + location.host);
line.onopen = async () => {
  try {
    line.send(JSON.stringify({ stores: await stores(), lost: await lost(), hooks: await hooks(), failing: await failing() }));
  } catch (error) {
    line.send(JSON.stringify({ error: error.stack }));
  }
};
`;

test('stores keep cursors, and hooks leave nothing behind', { timeout: 60_000 }, async (t) => {
  const { outputFiles } = await build({
    stdin: { contents: PAGE, resolveDir: process.cwd() },
    bundle: true,
    format: 'esm',
    write: false,
    define: { 'process.env.NODE_ENV': '"development"' },
  });
  let page;
  const result = await new Promise((resolve, reject) => {
    openPage({
      files: { '/': 'bundle.html' },
      answer: (request, response) => {
        if (request.url !== '/bundle.js') return false;
        response.writeHead(200, { 'content-type': 'text/javascript' });
        return response.end(outputFiles[0].text);
      },
      onSay: resolve,
      onEnd: () => reject(new Error('the page has ended')),
    }).then((opened) => {
      page = opened;
      t.after(page.end);
      page.open();
    });
  });
  assert.equal(result.error, undefined);
  assert.deepEqual(result.stores, { indexedDb: [null, 'c2', 'b1'], session: [null, 'c2', 'b1'] });
  assert.deepEqual(result.lost, ['c2', 'c3', 4]);
  assert.deepEqual(result.failing, { loads: 5, unhandled: [] });
  // At the first `open`, and after the gap.
  assert.deepEqual(result.hooks, { loads: 2, got: [1], during: [1, 1, 1], after: [0, 0, 0] });
});
