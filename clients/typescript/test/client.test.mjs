// What the suite in clients/suite can't show, or only slowly.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Wirepost, memoryStore } from '../dist/index.js';
import { fakeSockets, until } from './fake.mjs';

const timing = { fastFirst: 1, fastMax: 1, nackFirst: 1 };

function start(options = {}) {
  const { FakeSocket, sockets } = fakeSockets();
  const errors = [];
  const client = new Wirepost({
    token: async () => 'wss://ws.example/socket/ticket',
    WebSocket: FakeSocket,
    timing,
    onError: (error) => errors.push(error),
    ...options,
  });
  return { client, sockets, errors };
}

async function open(options) {
  const started = start(options);
  await until(() => started.sockets.length === 1);
  started.sockets[0].welcome();
  return started;
}

const message = (n, more) => ({ id: `m${n}`, messageType: 'a.b', content: n, cursor: `c${n}`, ...more });

test('handlers get what their pattern matches', async () => {
  const { client, sockets } = await open();
  const got = {};
  for (const pattern of ['a.b', 'a.*', '*', '#', 'a.#', '#.b', '*.*.*', 'a.b.#', '#.c.#', '#.x.#.y', 'a.#.#', '#.b.c.#.c']) {
    client.on(pattern, ({ messageType }) => (got[pattern] ??= []).push(messageType));
  }
  for (const [n, messageType] of ['a.b', 'a', 'a.b.c', 'x.c.y'].entries()) sockets[0].say(message(n, { messageType }));
  await until(() => got['#']?.length === 4);
  assert.deepEqual(got, {
    'a.b': ['a.b'],
    'a.*': ['a.b'],
    '*': ['a'],
    '#': ['a.b', 'a', 'a.b.c', 'x.c.y'],
    'a.#': ['a.b', 'a', 'a.b.c'],
    '#.b': ['a.b'],
    '*.*.*': ['a.b.c', 'x.c.y'],
    'a.b.#': ['a.b', 'a.b.c'],
    '#.c.#': ['a.b.c', 'x.c.y'],
    '#.x.#.y': ['x.c.y'],
    'a.#.#': ['a.b', 'a', 'a.b.c'],
  });
  client.close();
});

test('a pattern of many hashes is matched in no time', async () => {
  const { client, sockets } = await open();
  const got = [];
  client.on(Array(40).fill('#.a').join('.'), () => got.push('pattern'));
  client.on('#', () => got.push('all'));
  sockets[0].say(message(1, { messageType: `${Array(80).fill('a').join('.')}.b` }));
  await until(() => got.length);
  assert.deepEqual(got, ['all']);
  client.close();
});

test('a handler that was ended gets nothing more, and one that fails for good is passed over', async () => {
  const { client, sockets, errors } = await open({ attempts: 1 });
  const got = [];
  const off = client.on('a.b', ({ content }) => got.push(content));
  client.on('a.b', () => {
    throw new Error('mine');
  });
  sockets[0].say(message(1));
  await until(() => errors.length === 1);
  off();
  sockets[0].say(message(2));
  await until(() => errors.length === 2);
  assert.deepEqual(got, [1]);
  assert.equal(errors[0].message, 'mine');
  client.close();
});

test('the inbox is bounded: it disconnects until the messages are handled, and continues there', async () => {
  const { client, sockets } = await open({ inboxLimit: 3 });
  let release;
  const got = [];
  client.on('#', ({ content }) => {
    got.push(content);
    return new Promise((resolve) => (release = resolve));
  });
  for (let n = 1; n <= 6; n++) sockets[0].say(message(n));
  assert.equal(client.state, 'waiting');
  assert.equal(sockets[0].closed, 1000);
  client.connect();
  assert.equal(sockets.length, 1, 'it may not connect while it is full');
  while (sockets.length === 1) {
    release?.();
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  // Exactly behind what it took.
  assert.equal(sockets[1].url, `wss://ws.example/socket/?cursor=c${got.length}`);
  assert.deepEqual(sockets[1].protocols, ['wirepost.v1', 'wirepost.token.resume']);
  client.close();
});

test('a store that fails costs nothing but the cursor', async () => {
  const broken = { get: () => Promise.reject(new Error('get')), set: () => Promise.reject(new Error('set')) };
  const { client, sockets, errors } = await open({ store: broken });
  const got = [];
  client.on('#', ({ content }) => got.push(content));
  sockets[0].say(message(1));
  sockets[0].say(message(2));
  await until(() => got.length === 2 && errors.length >= 3);
  assert.equal(errors[0].message, 'get');
  client.close();
});

test('a slow store gets the newest cursor, one write at a time', async () => {
  const writes = [];
  let finish;
  const store = { get: () => 'c7', set: (cursor) => new Promise((resolve) => (writes.push(cursor), (finish = resolve))) };
  const { client, sockets } = await open({ store });
  assert.match(sockets[0].url, /\?cursor=c7$/);
  for (let n = 1; n <= 5; n++) sockets[0].say(message(n));
  await until(() => writes.length === 1);
  finish();
  await until(() => writes.length === 2);
  assert.deepEqual(writes, ['c0', 'c5']);
  finish();
  client.close();
});

test('a refusal of a repeat does not say that the first attempt did not arrive', async () => {
  const { client, sockets } = await open();
  const sent = client.send('a.b', 1);
  await until(() => sockets[0].sent.length === 1);
  sockets[0].end(1006);
  await until(() => sockets.length === 2);
  sockets[1].welcome({ resumed: true });
  await until(() => sockets[1].sent.length === 1);
  const { id } = sockets[1].sent[0];
  sockets[1].say({ op: 'nack', id, code: 'not_allowed', reason: 'no', retryable: false, mayHaveArrived: false });
  await assert.rejects(sent, { code: 'not_allowed', mayHaveArrived: true });
  client.close();
});

test('an aborted message that was sent may have arrived; its late answer hurts nobody', async () => {
  const { client, sockets } = await open();
  const abort = new AbortController();
  const sent = client.send('a.b', 1, { signal: abort.signal });
  await until(() => sockets[0].sent.length === 1);
  abort.abort();
  await assert.rejects(sent, { name: 'WirepostError', code: 'aborted', mayHaveArrived: true });
  sockets[0].ack();
  await assert.rejects(client.send('a.b', 1, { signal: AbortSignal.abort() }), { code: 'aborted', mayHaveArrived: false });
  client.close();
});

test('a handler may wait for an answer', async () => {
  const { client, sockets } = await open();
  const got = [];
  client.on('#', async ({ content }) => got.push(content, (await client.request('qr.refresh', {}, { timeoutMs: 4000 })).content));
  sockets[0].say(message(1));
  await until(() => sockets[0].sent.length === 1);
  const [{ id }] = sockets[0].sent;
  sockets[0].ack();
  sockets[0].say(message(2, { correlationId: id }));
  await until(() => got.length === 2);
  assert.deepEqual(got, [1, 2]);
  client.close();
});

test('an id that no edge returns is refused: its answer could not be told from others', async () => {
  const { client, sockets } = await open();
  for (const id of ['', 'x'.repeat(65), 'ä'.repeat(33), '\ud800', 7, null]) {
    await assert.rejects(client.send('a.b', 1, { id }), { code: 'invalid_envelope' }, `${id}`);
    await assert.rejects(client.request('a.b', 1, { id }), { code: 'invalid_envelope' }, `${id}`);
  }
  const sent = client.send('a.b', 1, { id: 'ä'.repeat(30) + '😀' });
  await until(() => sockets[0].sent.length === 1);
  sockets[0].ack();
  await sent;
  client.close();
});

test('callbacks that throw, immediately or later, end nothing', async (t) => {
  const unhandled = [];
  const note = (error) => unhandled.push(error);
  const shown = t.mock.method(console, 'error', () => {});
  process.on('unhandledRejection', note);
  t.after(() => process.off('unhandledRejection', note));
  for (const fail of [
    () => {
      throw new Error('mine');
    },
    async () => {
      throw new Error('mine');
    },
  ]) {
    const { client, sockets } = start({ onError: fail, attempts: 1 });
    client.onState(fail);
    client.onGap(fail);
    client.on('#', fail);
    const got = [];
    client.on('#', ({ content }) => got.push(content));
    await until(() => sockets.length === 1);
    sockets[0].welcome();
    sockets[0].say({ op: 'gap', reason: 'retention' });
    sockets[0].say(message(1));
    sockets[0].end(1006);
    await until(() => sockets.length === 2);
    sockets[1].welcome({ resumed: true });
    sockets[1].say(message(2));
    const sent = client.send('a.b', 1);
    await until(() => sockets[1].sent.length === 1 && got.length === 2);
    sockets[1].ack();
    await sent;
    assert.equal(client.state, 'open');
    client.close();
  }
  assert.deepEqual(unhandled, []);
  assert.ok(shown.mock.callCount() > 0, 'what onError throws is shown');
});

test('1009 rejects the largest message and repeats the others', async () => {
  const { client, sockets } = await open();
  const [small, large, other] = ['small', 'x'.repeat(500), 'other'].map((content) => client.send('a.b', content));
  await until(() => sockets[0].sent.length === 3);
  sockets[0].end(1009);
  await assert.rejects(large, { code: 'too_large', mayHaveArrived: false });
  await until(() => sockets.length === 2);
  sockets[1].welcome({ resumed: true });
  await until(() => sockets[1].sent.length === 2);
  assert.deepEqual(sockets[1].sent.map(({ content }) => content), ['small', 'other']);
  sockets[1].ack();
  await Promise.all([small, other]);
  client.close();
});

test('`resumed: false` and the `gap` that follows it are one gap; one after a message is another', async () => {
  for (const [between, expected] of [[undefined, 1], [message(1), 2], [{ op: 'position', cursor: 'c1' }, 2]]) {
    const { client, sockets } = start({ store: memoryStore('old') });
    const gaps = [];
    client.onGap(({ reason }) => gaps.push(reason));
    await until(() => sockets.length === 1);
    sockets[0].welcome();
    if (between) sockets[0].say(between);
    sockets[0].say({ op: 'gap', reason: 'incarnation' });
    let handled = false;
    client.on('end', () => (handled = true));
    sockets[0].say(message(2, { messageType: 'end' }));
    await until(() => handled);
    assert.equal(gaps.length, expected, `${gaps}`);
    client.close();
  }
});

test('receipts go to the open connection, 256 in a frame', async () => {
  const { client, sockets } = await open();
  client.received({ id: 'm' }, ...Array.from({ length: 299 }, (_, n) => `m${n}`));
  assert.deepEqual(sockets[0].sent.map(({ op, ids }) => [op, ids.length, ids[0]]), [['received', 256, 'm'], ['received', 44, 'm255']]);
  sockets[0].end(1006);
  client.received('late');
  assert.equal(sockets[0].sent.length, 2);
  client.close();
});

test('a receipt without an answer makes its message come again, and is given again', async () => {
  const { client, sockets } = await open();
  const got = [];
  client.on('#', ({ id }) => got.push(id));
  for (const n of [1, 2, 3]) sockets[0].say(message(n));
  client.received('m1', 'm2', 'm3');
  sockets[0].say({ op: 'receipt', ids: ['m1'] });
  sockets[0].say({ op: 'error', about: 'received', ids: ['m3'], retryable: false, reason: 'no' });
  sockets[0].end(1006);
  await until(() => sockets.length === 2);
  assert.match(sockets[1].url, /cursor=c1$/);
  sockets[1].welcome({ cursor: 'c1', resumed: true });
  for (const n of [2, 3]) sockets[1].say(message(n));
  await until(() => sockets[1].sent.length);
  assert.deepEqual(sockets[1].sent, [{ op: 'received', ids: ['m2'] }]);
  sockets[1].say({ op: 'receipt', ids: ['m2'] });
  sockets[1].end(1006);
  await until(() => sockets.length === 3);
  assert.match(sockets[2].url, /cursor=c3$/, 'what came again did not move the position back');
  assert.deepEqual(got, ['m1', 'm2', 'm3']);
  client.close();
});

/** Three messages, the second with a receipt that is lost, and the next connection, which begins before it. */
async function withLostReceipt() {
  const { client, sockets } = await open();
  const [got, gaps] = [[], []];
  client.on('#', ({ id }) => got.push(id));
  client.onGap(({ reason }) => gaps.push(reason));
  for (const n of [1, 2, 3]) sockets[0].say(message(n));
  client.received('m2');
  sockets[0].end(1006);
  await until(() => sockets.length === 2);
  assert.match(sockets[1].url, /cursor=c1$/);
  return { client, sockets, got, gaps };
}

test('a message that does not come again takes its receipt with it', async () => {
  const { client, sockets } = await withLostReceipt();
  sockets[1].welcome({ cursor: 'c1', resumed: true });
  sockets[1].say(message(3));
  client.received('m1');
  sockets[1].say(message(4));
  sockets[1].end(1006);
  await until(() => sockets.length === 3);
  assert.match(sockets[2].url, /cursor=c0$/, 'a receipt that was given since then still waits');
  sockets[2].welcome({ cursor: 'c0', resumed: true });
  sockets[2].say(message(5));
  sockets[2].end(1006);
  await until(() => sockets.length === 4);
  assert.match(sockets[3].url, /cursor=c5$/);
  client.close();
});

test('a position in a repetition: what has not come again may be behind it', async () => {
  const { client, sockets } = await withLostReceipt();
  // As where the broker was away: this position is where the repetition begins.
  sockets[1].welcome({ cursor: undefined, resumed: undefined });
  sockets[1].say({ op: 'position', cursor: 'p' });
  sockets[1].end(1006);
  await until(() => sockets.length === 3);
  assert.match(sockets[2].url, /cursor=p$/);
  sockets[2].welcome({ cursor: 'p', resumed: true });
  sockets[2].say(message(2));
  await until(() => sockets[2].sent.length);
  assert.deepEqual(sockets[2].sent, [{ op: 'received', ids: ['m2'] }]);
  client.close();
});

test('an old position that is gone is no gap while the newest one is not', async () => {
  for (const gone of [
    (socket) => socket.welcome({ cursor: 'end' }),
    (socket) => {
      socket.welcome({ cursor: undefined, resumed: undefined });
      socket.say({ op: 'gap', reason: 'retention' });
    },
    (socket) => {
      socket.welcome({ cursor: 'c1', resumed: true });
      socket.say(message(2));
      socket.say({ op: 'gap', reason: 'retention' });
    },
  ]) {
    const { client, sockets, got, gaps } = await withLostReceipt();
    gone(sockets[1]);
    sockets[1].say({ op: 'position', cursor: 'end' });
    sockets[1].say(message(9));
    await until(() => sockets.length === 3);
    assert.equal(sockets[1].closed, 1000);
    assert.match(sockets[2].url, /cursor=c3$/);
    sockets[2].welcome({ cursor: 'c3', resumed: true });
    sockets[2].say(message(4));
    await until(() => got.length === 4);
    assert.deepEqual([got, gaps], [['m1', 'm2', 'm3', 'm4'], []]);
    client.close();
  }
});

test('an old and the newest position that are gone are one gap', async () => {
  const { client, sockets, gaps } = await withLostReceipt();
  sockets[1].welcome({ cursor: 'end' });
  await until(() => sockets.length === 3);
  sockets[2].welcome({ cursor: 'end' });
  sockets[2].say({ op: 'gap', reason: 'retention' });
  await until(() => gaps.length);
  assert.deepEqual([gaps, client.state, sockets.length], [['resume'], 'open', 3]);
  client.close();
});

test('while a drain lets a connection live, it serves until the newest position was tried', async () => {
  const { client, sockets, got, gaps } = await withLostReceipt();
  sockets[1].welcome({ cursor: 'c1', resumed: true });
  sockets[1].say(message(3));
  sockets[1].say({ op: 'drain', reconnectWithinMs: 1 });
  await until(() => sockets.length === 3);
  assert.match(sockets[2].url, /cursor=c1$/);
  sockets[2].welcome({ cursor: 'end' });
  await until(() => sockets.length === 4);
  assert.equal(sockets[1].closed, undefined);
  assert.match(sockets[3].url, /cursor=c3$/);
  sockets[1].say(message(4));
  sockets[3].welcome({ cursor: 'c3', resumed: true });
  assert.equal(sockets[1].closed, 1000);
  for (const n of [4, 5]) sockets[3].say(message(n));
  await until(() => got.length === 5);
  assert.deepEqual([got, gaps], [['m1', 'm2', 'm3', 'm4', 'm5'], []]);
  client.close();
});

test('a message waits once', async () => {
  const { client, sockets } = await open();
  const sent = client.send('a.b', 1, { id: 'x' });
  await assert.rejects(client.send('a.b', 1, { id: 'x' }), { code: 'duplicate_id' });
  sockets[0].ack();
  assert.equal(await sent, 'x');
  client.close();
});

test('two deaths in silence give the next pings more time', async () => {
  const { client, sockets } = start({ timing: { ...timing, pingAfter: 20, pongWithin: 100 } });
  const lifetimes = [];
  for (let n = 0; n < 4; n++) {
    await until(() => sockets.length === n + 1);
    const begin = performance.now();
    sockets[n].welcome({ resumed: true });
    await until(() => client.state !== 'open');
    lifetimes.push(performance.now() - begin);
  }
  assert.ok(lifetimes[0] < 200 && lifetimes[3] > 400, `${lifetimes}`);
  client.close();
});

test('lastEventAge says how fresh the view is', async () => {
  const { client, sockets } = start();
  assert.equal(client.lastEventAge, Infinity);
  await until(() => sockets.length === 1);
  sockets[0].welcome();
  assert.ok(client.lastEventAge < 1000);
  client.close();
  assert.equal(client.lastEventAge, Infinity);
});

test('without a WebSocket it says what to do', async () => {
  const saved = globalThis.WebSocket;
  delete globalThis.WebSocket;
  const errors = [];
  const client = new Wirepost({ token: async () => 'wss://x/socket/t', onError: (error) => errors.push(error), timing });
  await until(() => errors.length > 0);
  assert.match(errors[0].message, /pass one in the options/);
  client.close();
  if (saved) globalThis.WebSocket = saved;
});

test('a memory store can begin with a cursor', () => {
  const store = memoryStore('c1');
  store.set('c2');
  assert.equal(store.get(), 'c2');
});
