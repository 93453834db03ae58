// The built client where there is no DOM: a context with what React Native has, and nothing else.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { createContext, runInContext } from 'node:vm';
import { fakeSockets, until } from './fake.mjs';

/** React Native's globals, as far as a client could use them. `window` is the global object, without any event of a page. */
function reactNative() {
  const { FakeSocket, sockets } = fakeSockets();
  // It declares `bufferedAmount` and never sets it.
  class WebSocket extends FakeSocket {
    bufferedAmount = undefined;
  }
  const errors = [];
  const globals = {
    WebSocket,
    AbortController,
    performance: { now: () => performance.now() },
    setTimeout,
    clearTimeout,
    fetch: async () => ({ ok: true, headers: new Map(), json: async () => ({ data: 'wss://ws.example/socket/ticket' }) }),
    navigator: { product: 'ReactNative' },
    console: { error: (error) => errors.push(error) },
  };
  globals.window = globals.self = globals.global = globals;
  const context = createContext(globals);
  const load = (entry) => {
    const module = { exports: {} };
    const wrapped = runInContext(`(function (module, exports) {${readFileSync(`dist/${entry}.cjs`)}\n})`, context);
    wrapped(module, module.exports);
    return module.exports;
  };
  return { load, sockets, errors };
}

for (const [entry, name] of [['index', 'Wirepost'], ['tabs', 'SharedWirepost']]) {
  test(`${name} works in React Native, which has no page, no storage, no locks`, async () => {
    const { load, sockets, errors } = reactNative();
    const { fetchToken } = load('index');
    const cursors = [];
    const client = new (load(entry)[name])({
      name: 'alice',
      token: (signal) => fetchToken('https://shop.example/wirepost-token', { signal }),
      // As with AsyncStorage.
      store: { get: async () => null, set: async (cursor) => void cursors.push(cursor) },
      timing: { pingAfter: 30, hintPongWithin: 50, fastFirst: 1 },
    });
    const states = [];
    const got = [];
    client.onState((state) => states.push(state));
    client.on('a.*', ({ content }) => got.push(content));
    await until(() => sockets.length === 1);
    sockets[0].welcome();
    assert.equal(client.state, 'open');
    sockets[0].say({ id: 'm1', messageType: 'a.b', content: 1, cursor: 'c1' });
    await until(() => cursors.includes('c1'));
    assert.deepEqual(got, [1]);

    const sent = client.send('a.b', { n: 1 });
    await until(() => sockets[0].sent.some(({ op }) => !op));
    assert.match(sockets[0].sent.find(({ op }) => !op).id, /^.{16,64}$/, 'an id without crypto.randomUUID');
    sockets[0].ack();
    await sent;

    // The app was in the background, and its connection is dead.
    await new Promise((resolve) => setTimeout(resolve, 60));
    client.hint('hidden');
    client.hint('visible');
    await until(() => sockets.length === 2);
    assert.equal(sockets[1].url, 'wss://ws.example/socket/?cursor=c1');
    assert.equal(sockets[1].protocols.join(), 'wirepost.v1,wirepost.token.resume');
    sockets[1].welcome({ resumed: true });
    assert.equal(states.at(-1), 'open');
    client.close();
    assert.equal(sockets[1].closed, 1000);
    assert.deepEqual(errors, []);
  });
}
