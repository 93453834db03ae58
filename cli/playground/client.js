// @wirepost/client, written by `make playground` from clients/typescript/src. Do not edit.

// src/timing.ts
var TIMING = {
  pingAfter: 2e4,
  pongWithin: 15e3,
  hintPongWithin: 5e3,
  connectWithin: 1e4,
  stableAfter: 5e3,
  fastFirst: 500,
  fastMax: 3e4,
  slowFirst: 3e4,
  slowMax: 9e5,
  nackFirst: 1e3,
  nackMax: 3e4
};
var LONGEST_RETRY_AFTER = 9e5;
var LONGEST_TIMER = 2 ** 31 - 1;
var now = () => performance.now();
var timer = (ms, run) => setTimeout(run, Math.min(ms, LONGEST_TIMER));
var halfRandom = (first, most, failures) => {
  const bound = Math.min(most, first * 2 ** failures);
  return bound * (1 + Math.random()) / 2;
};
var Waits = class {
  constructor(timing) {
    this.timing = timing;
  }
  timing;
  #failures = 0;
  #slow = 0;
  reset() {
    this.#failures = this.#slow = 0;
  }
  next(slowly, retryAfterMs = 0) {
    const { fastFirst, fastMax, slowFirst, slowMax } = this.timing;
    const wait = slowly ? halfRandom(slowFirst, slowMax, this.#slow++) : Math.random() * Math.min(fastMax, fastFirst * 2 ** this.#failures++);
    return wait + Math.min(retryAfterMs, LONGEST_RETRY_AFTER);
  }
};

// src/connection.ts
var BUFFERED = 1 << 20;
var HELD_UP = 2e3;
var Connection = class {
  constructor(Socket, url, token, cursor, timing, patience, owner) {
    this.cursor = cursor;
    this.timing = timing;
    this.owner = owner;
    this.#pongWithin = timing.pongWithin * patience;
    const protocols = ["wirepost.v1", `wirepost.token.${token}`];
    const socket = this.#socket = new Socket(cursor ? `${url}?cursor=${cursor}` : url, protocols);
    socket.onopen = () => {
      this.#open = true;
      this.heard = now();
      this.#watch();
    };
    socket.onmessage = (event) => {
      this.heard = now();
      this.frames++;
      if (this.#pinged) {
        this.#pinged = 0;
        this.#watch();
      }
      let frame;
      try {
        frame = JSON.parse(event.data);
      } catch {
        return;
      }
      if (!frame || typeof frame !== "object") return;
      if (frame.op === "welcome") {
        this.welcome = frame;
        this.#watch();
      }
      owner.onFrame(this, frame);
    };
    socket.onclose = (event) => this.#end(event.code || 1006);
    socket.onerror = () => {
    };
    this.#watch();
  }
  cursor;
  timing;
  owner;
  /** When the last frame arrived. */
  heard = now();
  began = now();
  welcome;
  /** A `gap` that follows a `welcome` with `resumed: false` is the same gap. */
  gapReported = false;
  /** It began before the newest position, so that messages come again whose receipts have no answer. */
  again = false;
  /** Receipts that waited for their messages when it began, if it began before those. */
  awaited = [];
  /** A drain told it to leave. */
  leaving = false;
  /** Ids of messages without an answer. */
  unanswered = /* @__PURE__ */ new Set();
  /** Frames that arrived. */
  frames = 0;
  #socket;
  #open = false;
  #pinged = 0;
  #pongWithin;
  #timer;
  /** Whether it takes more. */
  get roomy() {
    return !!this.#socket && !(this.#socket.bufferedAmount > BUFFERED);
  }
  send(text) {
    this.#socket?.send(text);
  }
  /** Tests it: it is dead if nothing arrives within `hintPongWithin`. */
  test(silence = 0) {
    if (this.welcome && now() - this.heard >= silence) this.#ping(this.timing.hintPongWithin);
  }
  /** Leaves it; nothing is reported any more. */
  leave() {
    const socket = this.#socket;
    if (!socket) return;
    this.#socket = void 0;
    clearTimeout(this.#timer);
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.onerror = () => {
    };
    if (this.#open) socket.close(1e3);
    else socket.terminate ? socket.terminate() : socket.close();
  }
  /** Gives it up without waiting for the other side: the network is dead. */
  abandon() {
    const socket = this.#socket;
    if (!socket) return;
    this.leave();
    socket.terminate?.();
    this.owner.onEnd(this, 1006);
  }
  #end(code) {
    if (!this.#socket) return;
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket = void 0;
    clearTimeout(this.#timer);
    this.owner.onEnd(this, code);
  }
  #ping(within) {
    this.#pinged = now();
    this.send('{"op":"ping"}');
    this.#watch(within);
  }
  /** Waits for the next time at which silence means something. */
  #watch(pongWithin = this.#pongWithin) {
    clearTimeout(this.#timer);
    const due = !this.welcome ? (this.#open ? this.heard : this.began) + this.timing.connectWithin : this.#pinged ? this.#pinged + pongWithin : this.heard + this.timing.pingAfter;
    this.#timer = timer(Math.max(0, due - now()), () => {
      if (now() - due > HELD_UP && this.#pinged) this.#ping(this.timing.hintPongWithin);
      else if (!this.welcome || this.#pinged) this.abandon();
      else if (now() < this.heard + this.timing.pingAfter) this.#watch();
      else this.#ping(this.#pongWithin);
    });
  }
};

// src/errors.ts
var WirepostError = class extends Error {
  constructor(code, reason, mayHaveArrived = false, retryable = false) {
    super(`${code}: ${reason}`);
    this.code = code;
    this.mayHaveArrived = mayHaveArrived;
    this.retryable = retryable;
  }
  code;
  mayHaveArrived;
  retryable;
  name = "WirepostError";
};
var TokenError = class extends Error {
  constructor(status, reason, retryAfterMs = 0) {
    super(`${status}: ${reason}`);
    this.status = status;
    this.retryAfterMs = retryAfterMs;
  }
  status;
  retryAfterMs;
  name = "TokenError";
};
async function fetchToken(url, init) {
  const response = await fetch(url, init);
  const answer = await response.json().catch(() => void 0) ?? {};
  if (response.ok && typeof answer.data === "string") return answer.data;
  const seconds = Number(response.headers.get("retry-after"));
  throw new TokenError(response.status, answer.description ?? "no connection URL", seconds > 0 ? seconds * 1e3 : 0);
}

// src/id.ts
var newId = () => globalThis.crypto?.randomUUID?.() ?? [1, 2, 3].map(() => Math.random().toString(36).slice(2, 12)).join("");
function checkId(id) {
  if (typeof id === "string" && id && utf8Length(id) <= 64 && !/[\ud800-\udfff]/u.test(id)) return;
  throw new WirepostError("invalid_envelope", "an id is a string of 1 to 64 bytes");
}
function utf8Length(text) {
  let length = text.length;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code > 127) length += code > 2047 && (code < 55296 || code > 57343) ? 2 : 1;
  }
  return length;
}

// src/inbox.ts
var FIRST_PAUSE = 500;
var LONGEST_PAUSE = 5e3;
function keyOf({ id, sendType, businessType, fromUniqueId }) {
  return JSON.stringify([businessType, sendType === "ClientToClient" ? fromUniqueId : null, id]);
}
var Inbox = class {
  constructor(store, remembered, attempts, take, onError, onEmpty) {
    this.store = store;
    this.remembered = remembered;
    this.attempts = attempts;
    this.take = take;
    this.onError = onError;
    this.onEmpty = onEmpty;
  }
  store;
  remembered;
  attempts;
  take;
  onError;
  onEmpty;
  #handlers = /* @__PURE__ */ new Set();
  #gapHandlers = /* @__PURE__ */ new Set();
  #items = [];
  #seen = /* @__PURE__ */ new Set();
  #busy = false;
  #closed = false;
  #unwritten;
  #writing = false;
  get size() {
    return this.#items.length;
  }
  on(pattern, handler) {
    const entry = [pattern, handler];
    this.#handlers.add(entry);
    return () => this.#handlers.delete(entry);
  }
  onGap(handler) {
    this.#gapHandlers.add(handler);
    return () => this.#gapHandlers.delete(handler);
  }
  /** A message is handed over unless its sender's id was seen before; its cursor counts in any case. */
  add(item) {
    if (item.message?.id) {
      const key = keyOf(item.message);
      if (this.#seen.has(key)) delete item.message;
      this.#seen.delete(key);
      this.#seen.add(key);
      if (this.#seen.size > this.remembered) this.#seen.delete(this.#seen.values().next().value);
    }
    if (item.message && this.take(item.message)) delete item.message;
    this.#items.push(item);
    if (!this.#busy) void this.#run();
  }
  close() {
    this.#closed = true;
    this.#items.length = 0;
  }
  async #run() {
    this.#busy = true;
    let item;
    while (item = this.#items.shift()) {
      const { message, gap, cursor } = item;
      if (gap) for (const handler of this.#gapHandlers) await this.#call(handler, gap);
      if (message) {
        for (const [pattern, handler] of this.#handlers) {
          if (matches(pattern, message.messageType)) await this.#call(handler, message, message);
        }
      }
      if (this.#closed) return;
      if (cursor) this.#write(cursor);
    }
    this.#busy = false;
    this.onEmpty();
  }
  async #call(handler, value, message) {
    for (let attempt = 0; !this.#closed; attempt++) {
      try {
        await handler(value);
        return;
      } catch (error) {
        this.onError(error, message);
        if (attempt + 1 >= this.attempts) return;
        await new Promise((resolve) => timer(halfRandom(FIRST_PAUSE, LONGEST_PAUSE, attempt), resolve));
      }
    }
  }
  /** One write at a time; of those that wait only the newest. */
  #write(cursor) {
    this.#unwritten = cursor;
    if (!this.#writing) void this.#writeAll();
  }
  async #writeAll() {
    this.#writing = true;
    while (this.#unwritten) {
      const cursor = this.#unwritten;
      this.#unwritten = void 0;
      try {
        const written = this.store.set(cursor);
        if (written) await written;
      } catch (error) {
        this.onError(error);
      }
    }
    this.#writing = false;
  }
};
function matches(pattern, type) {
  const [patterns, words] = [pattern.split("."), type.split(".")];
  let [p, w, hash, taken] = [0, 0, -1, 0];
  while (w < words.length) {
    if (patterns[p] === "#") [hash, taken] = [p++, w];
    else if (p < patterns.length && (patterns[p] === "*" || patterns[p] === words[w])) p++, w++;
    else if (hash >= 0) [p, w] = [hash + 1, ++taken];
    else return false;
  }
  while (patterns[p] === "#") p++;
  return p === patterns.length;
}

// src/listeners.ts
var Listeners = class {
  constructor(onError) {
    this.onError = onError;
  }
  onError;
  state = "connecting";
  #handlers = /* @__PURE__ */ new Set();
  add(handler) {
    this.#handlers.add(handler);
    return () => this.#handlers.delete(handler);
  }
  /** Tells each change, and `connecting` at the start. */
  set(state) {
    if (this.state === state && state !== "connecting") return;
    this.state = state;
    for (const handler of [...this.#handlers]) (async () => handler(state))().catch((error) => this.report(error));
  }
  report(error, message) {
    if (this.state === "closed") return;
    (async () => (this.onError ?? console.error)(error, message))().catch(console.error);
  }
};

// src/outbox.ts
var WINDOW = 64;
var MARGIN = 0.8;
var FULL = 50;
var Outbox = class {
  constructor(limit, timing) {
    this.limit = limit;
    this.timing = timing;
  }
  limit;
  timing;
  /** In the order of sending; those without an answer too. */
  #entries = /* @__PURE__ */ new Map();
  #connection;
  #tokens = 0;
  #filled = 0;
  #notBefore = 0;
  #timer;
  /** Settles when there is an answer that is not to be repeated. */
  add(id, text, signal) {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(new WirepostError("aborted", "before it was sent"));
      if (this.#entries.size >= this.limit) {
        return reject(new WirepostError("queue_full", `${this.limit} messages wait already`, false, true));
      }
      if (this.#entries.has(id)) return reject(new WirepostError("duplicate_id", `${id} waits already`));
      const abort = () => fail("aborted", "by its signal");
      const fail = (code, reason) => entry.settle(new WirepostError(code, reason, entry.uncertain || !!entry.on));
      const entry = {
        text,
        refusals: 0,
        uncertain: false,
        settle: (error) => {
          this.#entries.delete(id);
          signal?.removeEventListener("abort", abort);
          error ? reject(error) : resolve();
        }
      };
      signal?.addEventListener("abort", abort);
      this.#entries.set(id, entry);
      this.#pump();
    });
  }
  /** Sends on this connection from now on; what waits on another one for an answer stays there. */
  use(connection) {
    this.#connection = connection;
    this.#tokens = Infinity;
    this.#notBefore = 0;
    this.#pump();
  }
  /** What a connection has not answered is sent again; `tooLarge`: but for the largest, which ended it. */
  lost(connection, tooLarge = false) {
    const lost = [...this.#entries.values()].filter(({ on }) => on === connection);
    const largest = tooLarge && lost.reduce((a, b) => a && a.text.length > b.text.length ? a : b, void 0);
    if (largest) largest.settle(new WirepostError("too_large", "it ended the connection", largest.uncertain));
    for (const entry of lost) {
      entry.on = void 0;
      entry.uncertain = true;
    }
    if (this.#connection === connection) this.#connection = void 0;
    this.#pump();
  }
  /** An `ack` or `nack`. */
  answer(connection, frame) {
    if (!connection.unanswered.delete(frame.id)) return;
    const entry = this.#entries.get(frame.id);
    if (entry?.on === connection) {
      entry.on = void 0;
      entry.uncertain ||= !!frame.mayHaveArrived;
      if (frame.op === "ack") entry.settle();
      else if (!frame.retryable) entry.settle(new WirepostError(frame.code, frame.reason, entry.uncertain));
      else {
        const { nackFirst, nackMax } = this.timing;
        const wait = halfRandom(nackFirst, nackMax, entry.refusals++);
        this.#notBefore = now() + (frame.retryAfterMs ?? wait);
      }
    }
    this.#pump();
  }
  /** Rejects everything. */
  close() {
    clearTimeout(this.#timer);
    for (const { settle, uncertain, on } of [...this.#entries.values()]) {
      settle(new WirepostError("closed", "the client was closed", uncertain || !!on));
    }
  }
  #pump() {
    clearTimeout(this.#timer);
    const connection = this.#connection;
    const limits = connection?.welcome?.limits;
    if (!connection || !limits) return;
    for (const [id, entry] of [...this.#entries]) {
      if (entry.on) continue;
      if (connection.unanswered.size >= WINDOW) return;
      const wait = Math.max(this.#notBefore - now(), connection.roomy ? this.#untilToken(limits) : FULL);
      if (wait > 0) {
        this.#timer = timer(wait, () => this.#pump());
        return;
      }
      if (utf8Length(entry.text) > limits.messageBytes) {
        entry.settle(new WirepostError("too_large", `longer than ${limits.messageBytes} bytes`, entry.uncertain));
        continue;
      }
      this.#tokens--;
      entry.on = connection;
      connection.unanswered.add(id);
      connection.send(entry.text);
    }
  }
  /** How long until one more message fits into the rate, in ms. */
  #untilToken(limits) {
    const perMs = limits.messagesPerSecond * MARGIN / 1e3;
    const time = now();
    const most = Math.max(1, Math.floor(limits.burst * MARGIN));
    this.#tokens = Math.min(most, this.#tokens + (time - this.#filled) * perMs);
    this.#filled = time;
    return this.#tokens >= 1 ? 0 : Math.ceil((1 - this.#tokens) / perMs);
  }
};

// src/page.ts
var EVENTS = [
  ["window", "online", "online"],
  ["window", "offline", "offline"],
  ["window", "pageshow", "resume"],
  ["document", "freeze", "freeze"],
  ["document", "resume", "resume"],
  ["document", "visibilitychange"]
];
function watchPage(pass) {
  const page = globalThis;
  if (!page.document?.addEventListener || !page.window?.addEventListener) return () => {
  };
  const ends = EVENTS.map(([on, event, hint]) => {
    const target = page[on];
    const listener = () => pass(hint ?? (page.document.visibilityState === "visible" ? "visible" : "hidden"));
    target.addEventListener(event, listener);
    return () => target.removeEventListener(event, listener);
  });
  return () => ends.forEach((end) => end());
}

// src/receipts.ts
var IN_A_FRAME = 256;
var TOGETHER = 20;
var Receipts = class {
  constructor(remembered, timing) {
    this.remembered = remembered;
    this.timing = timing;
  }
  remembered;
  timing;
  /** The last messages, the oldest first. */
  #messages = /* @__PURE__ */ new Map();
  /** Receipts without an answer, and where they were given; nowhere: their messages are to come again. */
  #open = /* @__PURE__ */ new Map();
  /** Those that are about to be given again. */
  #soon = /* @__PURE__ */ new Map();
  #refusals = 0;
  /** Where to continue so that messages come again whose receipts are open; `undefined`: nothing has to come again. */
  get cursor() {
    for (const [id, { before }] of this.#messages) if (before && this.#waits(id)) return before;
    return void 0;
  }
  /** Receipts that wait for their messages to come again. */
  get waiting() {
    return [...this.#open.keys()].filter((id) => this.#waits(id));
  }
  /** A message has come. Returns whether it came before. */
  delivered(id, before, on) {
    const known = this.#messages.get(id);
    if (known) known.on = on;
    else {
      this.#messages.set(id, { before, on });
      for (const one of on.awaited) if (this.#waits(one)) this.#open.delete(one);
      on.awaited = [];
    }
    if (this.#messages.size > this.remembered) {
      const [oldest] = this.#messages.keys();
      this.#messages.delete(oldest);
      if (this.#waits(oldest)) this.#open.delete(oldest);
    }
    if (this.#waits(id)) this.#giveSoon([id], on, TOGETHER);
    return !!known;
  }
  /** Gives receipts; `current` is for messages that are not remembered any more. */
  give(ids, current) {
    const by = /* @__PURE__ */ new Map();
    for (const id of new Set(ids)) {
      const known = this.#messages.get(id);
      const on = known ? known.on : current;
      if (!known && !on) continue;
      this.#open.set(id, on);
      if (this.#open.size > this.remembered) this.#open.delete(this.#open.keys().next().value);
      if (on) by.set(on, [...by.get(on) ?? [], id]);
    }
    for (const [on, some] of by) this.#send(some, on);
  }
  /** An answer: a `receipt`, or an `error` about `received`. */
  answer(on, { op, ids, retryable }) {
    const answered = (ids ?? []).filter((id) => this.#open.get(id) === on);
    if (op === "receipt") this.#refusals = 0;
    if (op === "error" && retryable) return this.#giveSoon(answered, on, halfRandom(this.timing.nackFirst, this.timing.nackMax, this.#refusals++));
    for (const id of answered) this.#open.delete(id);
  }
  /** Whether a connection owes answers. */
  owes(on) {
    for (const one of this.#open.values()) if (one === on) return true;
    return false;
  }
  /**
   * A connection has come to a position. What it has not brought again is behind that, or never comes. An edge sends
   * positions in the middle of a repetition too, so it is not known which.
   */
  reached(on, cursor) {
    for (const id of on.awaited) {
      const known = this.#messages.get(id);
      if (known && this.#waits(id)) known.before = cursor;
    }
  }
  /** A position can't be continued: what is to come again does not. */
  gap() {
    for (const [id, on] of this.#open) if (!on) this.#open.delete(id);
  }
  /** A connection ended, or was left. */
  lost(on) {
    clearTimeout(this.#soon.get(on)?.timer);
    this.#soon.delete(on);
    for (const known of this.#messages.values()) if (known.on === on) known.on = void 0;
    for (const [id, one] of this.#open) {
      if (one !== on) continue;
      if (this.#messages.has(id)) this.#open.set(id, void 0);
      else this.#open.delete(id);
    }
  }
  /** Whether a receipt waits for its message to come again. */
  #waits(id) {
    return this.#open.has(id) && !this.#open.get(id);
  }
  #giveSoon(ids, on, ms) {
    if (!ids.length) return;
    for (const id of ids) this.#open.set(id, on);
    const waiting = this.#soon.get(on);
    if (waiting) return void waiting.ids.push(...ids);
    const due = [...ids];
    this.#soon.set(on, {
      ids: due,
      timer: timer(ms, () => {
        this.#soon.delete(on);
        this.#send(due, on);
      })
    });
  }
  #send(ids, on) {
    for (let from = 0; from < ids.length; from += IN_A_FRAME) {
      on.send(JSON.stringify({ op: "received", ids: ids.slice(from, from + IN_A_FRAME) }));
    }
  }
};

// src/requests.ts
var Requests = class {
  #waiting = /* @__PURE__ */ new Map();
  /** Whether a request waited for this message. */
  take(message) {
    const waiting = message.correlationId ? this.#waiting.get(message.correlationId) : void 0;
    waiting?.resolve(message);
    return !!waiting;
  }
  /** Sends, and waits for the answer to the message of this id. */
  async request(id, timeoutMs, signal, send) {
    const stop = new AbortController();
    let code = "aborted";
    let reason = "by its signal";
    const abort = () => stop.abort();
    signal?.addEventListener("abort", abort);
    const timeout = timer(timeoutMs, () => {
      code = "no_answer";
      reason = `within ${timeoutMs} ms`;
      abort();
    });
    try {
      return await new Promise((resolve, reject) => {
        const fail = (mayHaveArrived) => reject(new WirepostError(code, reason, mayHaveArrived));
        this.#waiting.set(id, { resolve, reject });
        stop.signal.addEventListener("abort", () => timer(0, () => fail(true)));
        if (signal?.aborted) abort();
        send(stop.signal).catch((error) => error.code === "aborted" ? fail(error.mayHaveArrived) : reject(error));
      });
    } finally {
      clearTimeout(timeout);
      signal?.removeEventListener("abort", abort);
      this.#waiting.delete(id);
    }
  }
  /** Rejects everything. */
  close() {
    timer(0, () => {
      for (const { reject } of this.#waiting.values()) reject(new WirepostError("closed", "the client was closed", true));
    });
  }
};

// src/stores.ts
function memoryStore(cursor) {
  return {
    cursor,
    get() {
      return this.cursor;
    },
    set(cursor2) {
      this.cursor = cursor2;
    }
  };
}
function sessionStore(key) {
  return {
    get: () => sessionStorage.getItem(key),
    set: (cursor) => sessionStorage.setItem(key, cursor)
  };
}
function indexedDbStore(key, database = "wirepost") {
  let opened;
  const open = () => result(indexedDB.open(database, 1), (request) => {
    request.onupgradeneeded = () => request.result.createObjectStore("cursors");
  }).then((connection) => {
    connection.onversionchange = () => connection.close();
    return connection;
  });
  const cursors = async (mode, again = true) => {
    try {
      return (await (opened ??= open())).transaction("cursors", mode).objectStore("cursors");
    } catch (error) {
      opened = void 0;
      if (again) return cursors(mode, false);
      throw error;
    }
  };
  return {
    get: async () => result((await cursors("readonly")).get(key)),
    set: async (cursor) => void await result((await cursors("readwrite")).put(cursor, key))
  };
}
function result(request, prepare) {
  prepare?.(request);
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

// src/client.ts
var MOST_PATIENCE = 4;
var Wirepost = class {
  #options;
  #timing;
  #store;
  #waits;
  #inbox;
  #outbox;
  #receipts;
  #listeners;
  #requests = new Requests();
  #unwatch;
  #owner = {
    onFrame: (connection, frame) => this.#onFrame(connection, frame),
    onEnd: (connection, code) => this.#onEnd(connection, code)
  };
  /** The one that counts: opening, or open. */
  #current;
  /** Opening, while a drain lets the current one live. */
  #next;
  /** Those that owe answers, and count no more. */
  #old = /* @__PURE__ */ new Set();
  /** The newest position, for reconnecting. What is handled is in the store. */
  #cursor;
  #base = "";
  #resumeToken;
  /** Had a `welcome` once. */
  #greeted = false;
  /** Too many messages wait for handlers; it returns when they are handled. */
  #full = false;
  #silentDeaths = 0;
  /** An older attempt to connect gives up. */
  #attempt = 0;
  #timer;
  #refreshTimer;
  #calls = new AbortController();
  constructor(options) {
    this.#options = options;
    this.#timing = { ...TIMING, ...options.timing };
    this.#store = options.store ?? memoryStore();
    this.#waits = new Waits(this.#timing);
    this.#listeners = new Listeners(options.onError);
    this.#outbox = new Outbox(options.queueLimit ?? 1e3, this.#timing);
    const remembered = options.remembered ?? 1e3;
    this.#receipts = new Receipts(remembered, this.#timing);
    this.#inbox = new Inbox(
      this.#store,
      remembered,
      options.attempts ?? 4,
      (message) => this.#requests.take(message),
      (error, message) => this.#listeners.report(error, message),
      () => {
        if (!this.#full) return;
        this.#full = false;
        void this.#connect();
      }
    );
    this.#unwatch = watchPage((hint) => this.hint(hint));
    void this.#start();
  }
  get state() {
    return this.#listeners.state;
  }
  /** Ms since anything arrived on the connection; infinite without one. */
  get lastEventAge() {
    return this.#current?.welcome ? now() - this.#current.heard : Infinity;
  }
  on(pattern, handler) {
    return this.#inbox.on(pattern, handler);
  }
  /** Messages may be missing: fetch your state again. A handler is treated like one of a message. */
  onGap(handler) {
    return this.#inbox.onGap(handler);
  }
  onState(handler) {
    return this.#listeners.add(handler);
  }
  /**
   * Sends a message, and again until there is an answer. Resolves with its id when the broker has it, and rejects with a
   * {@link WirepostError}.
   */
  async send(messageType, content, options = {}) {
    const { to: toUniqueId, signal, id = newId(), ...rest } = options;
    if (this.#listeners.state === "closed") throw new WirepostError("closed", "the client was closed");
    checkId(id);
    await this.#outbox.add(id, JSON.stringify({ id, messageType, toUniqueId, ...rest, content }), signal);
    return id;
  }
  /** Sends a message and resolves with the one that answers it by its `correlationId`; handlers do not get that one. */
  async request(messageType, content, options = {}) {
    const { timeoutMs = 3e4, signal, id = newId(), ...rest } = options;
    return this.#requests.request(id, timeoutMs, signal, (signal2) => this.send(messageType, content, { ...rest, id, signal: signal2 }));
  }
  /**
   * Tells the business that these messages were stored or shown, on a route with `receipts`, and again until the edge has
   * answered, also by the next connection. The last messages can be told of, as many as `remembered`.
   */
  received(...messages) {
    if (this.#listeners.state === "closed") return;
    const ids = messages.map((message) => typeof message === "string" ? message : message.id);
    this.#receipts.give(ids, this.#current?.welcome && this.#current);
  }
  /** Connects now, if there is no connection. After `stopped` it is the only way back: call it when the user does something. */
  connect() {
    if (this.#listeners.state === "waiting" || this.#listeners.state === "stopped") void this.#connect();
  }
  /** What the platform says of network and page. Browsers are watched already; call it elsewhere, as in React Native. */
  hint(hint) {
    if (hint !== "online" && hint !== "visible" && hint !== "resume") return;
    if (this.#listeners.state === "waiting") void this.#connect();
    else this.#current?.test(hint === "online" ? 0 : this.#timing.pingAfter);
  }
  /** Ends it for good. What waits for an answer is rejected with `closed`. */
  close() {
    if (this.#listeners.state === "closed") return;
    this.#attempt++;
    this.#calls.abort();
    clearTimeout(this.#timer);
    clearTimeout(this.#refreshTimer);
    this.#unwatch();
    for (const connection of [this.#current, this.#next, ...this.#old]) connection?.leave();
    this.#current = this.#next = void 0;
    this.#old.clear();
    this.#inbox.close();
    this.#listeners.set("closed");
    this.#outbox.close();
    this.#requests.close();
  }
  #onFrame(connection, frame) {
    const counts = connection === this.#current;
    switch (frame.op) {
      case "welcome":
        return this.#welcomed(connection, frame);
      case "ack":
      case "nack":
        this.#outbox.answer(connection, frame);
        if (frame.op === "nack" && !frame.id) this.#listeners.report(new WirepostError(frame.code, frame.reason));
        return this.#leaveOld(connection);
      case "receipt":
      case "error":
        this.#receipts.answer(connection, frame);
        return this.#leaveOld(connection);
      case "drain":
        connection.leaving = true;
        if (counts && !this.#next) this.#moveIn(Math.random() * (frame.reconnectWithinMs ?? 0));
        return;
    }
    if (!counts || !connection.welcome) return;
    switch (frame.op) {
      case "position":
        connection.gapReported = connection.again = false;
        this.#resumeToken = frame.resumeToken ?? this.#resumeToken;
        if (frame.cursor) this.#receipts.reached(connection, frame.cursor);
        return this.#receive({ cursor: frame.cursor });
      case "gap":
        if (connection.again) return this.#fromNewest(connection);
        if (!connection.gapReported) this.#receive({ gap: { reason: frame.reason } });
        connection.gapReported = false;
        return;
      case "expiring":
        return this.#refresh(frame.inSeconds * 1e3);
      case "refreshed":
        this.#resumeToken = frame.resumeToken;
        return;
    }
    if (typeof frame.op === "string" || typeof frame.messageType !== "string") return;
    connection.gapReported = false;
    connection.again = this.#receipts.delivered(frame.id, this.#cursor, connection) && connection.again;
    this.#receive({ message: frame, cursor: connection.again ? void 0 : frame.cursor });
  }
  #onEnd(connection, code) {
    this.#outbox.lost(connection, code === 1009);
    this.#receipts.lost(connection);
    if (this.#old.delete(connection)) return;
    if (connection.welcome && now() - connection.began >= this.#timing.stableAfter) this.#waits.reset();
    if (code === 3e3) this.#resumeToken = void 0;
    if (connection === this.#next) {
      this.#next = void 0;
      return this.#moveIn(this.#waits.next(false));
    }
    this.#silentDeaths = code === 1006 && connection.welcome && connection.frames < 2 ? this.#silentDeaths + 1 : 0;
    this.#current = this.#next;
    this.#next = void 0;
    if (this.#current) return this.#listeners.set("connecting");
    if (code === 4009 && !connection.leaving) return this.#stop();
    this.#wait(code === 3003 || code === 4010);
  }
  async #start() {
    const attempt = ++this.#attempt;
    let cursor;
    try {
      cursor = await this.#store.get();
    } catch (error) {
      this.#listeners.report(error);
    }
    this.#cursor = cursor || void 0;
    if (attempt === this.#attempt) await this.#connect();
  }
  async #connect() {
    clearTimeout(this.#timer);
    if (this.#full || this.#current) return;
    const attempt = ++this.#attempt;
    this.#listeners.set("connecting");
    try {
      const token = await this.#credential();
      if (attempt === this.#attempt) this.#current = this.#open(token);
    } catch (error) {
      if (attempt === this.#attempt) this.#failed(error);
    }
  }
  /** After a drain: a second connection, while the first one still serves. */
  #moveIn(wait) {
    clearTimeout(this.#timer);
    this.#timer = timer(wait, async () => {
      const attempt = ++this.#attempt;
      try {
        const token = await this.#credential();
        if (attempt === this.#attempt && this.#current) this.#next = this.#open(token);
      } catch (error) {
        if (attempt === this.#attempt && this.#current) this.#moveIn(this.#waits.next(false));
      }
    });
  }
  #open(token) {
    const Socket = this.#options.WebSocket ?? globalThis.WebSocket;
    if (!Socket) throw new Error("there is no WebSocket here: pass one in the options");
    const patience = Math.min(MOST_PATIENCE, 2 ** Math.max(0, this.#silentDeaths - 1));
    const before = this.#receipts.cursor;
    const connection = new Connection(Socket, this.#base, token, before ?? this.#cursor, this.#timing, patience, this.#owner);
    connection.again = !!before && before !== this.#cursor;
    if (before) connection.awaited = this.#receipts.waiting;
    return connection;
  }
  /** What to connect with, at `#base`: the resume token, else a new ticket. */
  async #credential() {
    if (this.#resumeToken) return this.#resumeToken;
    const url = await this.#token();
    const end = url.lastIndexOf("/") + 1;
    this.#base = url.slice(0, end);
    return url.slice(end);
  }
  /** A token call, which may not take forever. */
  async #token() {
    const call = new AbortController();
    const abort = () => call.abort();
    this.#calls.signal.addEventListener("abort", abort);
    const late = timer(this.#timing.connectWithin, abort);
    try {
      return await Promise.race([
        this.#options.token(call.signal),
        new Promise((_, reject) => call.signal.addEventListener("abort", () => reject(new Error("the token call had no answer"))))
      ]);
    } finally {
      clearTimeout(late);
      this.#calls.signal.removeEventListener("abort", abort);
    }
  }
  #failed(error) {
    this.#listeners.report(error);
    const { status = 0, retryAfterMs = 0 } = error ?? {};
    this.#wait(status >= 400 && status < 500 && status !== 408 && status !== 429, retryAfterMs);
  }
  #wait(slowly, retryAfterMs = 0) {
    clearTimeout(this.#timer);
    this.#timer = timer(this.#waits.next(slowly, retryAfterMs), () => void this.#connect());
    this.#listeners.set("waiting");
  }
  #stop() {
    clearTimeout(this.#timer);
    this.#listeners.set("stopped");
  }
  #welcomed(connection, { cursor, resumed, resumeToken }) {
    if (resumed === false && connection.again) {
      this.#resumeToken = resumeToken;
      return this.#fromNewest(connection);
    }
    if (connection === this.#next) {
      if (this.#current) this.#old.add(this.#current);
      this.#current = connection;
      this.#next = void 0;
    }
    if (connection !== this.#current) return;
    clearTimeout(this.#refreshTimer);
    this.#resumeToken = resumeToken;
    let gap;
    if (!connection.cursor) {
      if (this.#greeted) gap = { reason: "restart" };
    } else if (resumed === false) {
      gap = { reason: "resume" };
      connection.gapReported = true;
      this.#receipts.gap();
      this.#cursor = void 0;
    }
    this.#greeted = true;
    this.#receive(gap ? { gap, cursor } : connection.again ? {} : { cursor });
    if (connection !== this.#current) return;
    this.#listeners.set("open");
    this.#outbox.use(connection);
    for (const old of [...this.#old]) this.#leaveOld(old);
  }
  /**
   * The position before a message without a receipt can't be continued. The newest one perhaps can, so there is no gap
   * yet: the next connection begins there, without the receipts that wait.
   */
  #fromNewest(connection) {
    connection.leave();
    this.#outbox.lost(connection);
    this.#receipts.lost(connection);
    this.#receipts.gap();
    if (connection === this.#next) {
      this.#next = void 0;
      return this.#moveIn(0);
    }
    this.#current = this.#next;
    this.#next = void 0;
    if (this.#current) this.#listeners.set("connecting");
    else void this.#connect();
  }
  /** An old connection is left when it owes no answers. */
  #leaveOld(connection) {
    if (connection.unanswered.size || this.#receipts.owes(connection) || !this.#old.delete(connection)) return;
    connection.leave();
    this.#receipts.lost(connection);
  }
  #receive(item) {
    if (item.cursor) this.#cursor = item.cursor;
    this.#inbox.add(item);
    const connection = this.#current;
    if (this.#inbox.size <= (this.#options.inboxLimit ?? 1e3) || !connection) return;
    this.#full = true;
    this.#attempt++;
    this.#current = void 0;
    for (const one of [connection, this.#next]) {
      one?.leave();
      if (one) this.#outbox.lost(one);
      if (one) this.#receipts.lost(one);
    }
    this.#next = void 0;
    clearTimeout(this.#timer);
    this.#listeners.set("waiting");
  }
  /** Prolongs the session with a new ticket; what fails is tried again while there is time. */
  #refresh(left) {
    clearTimeout(this.#refreshTimer);
    this.#refreshTimer = timer(Math.random() * left / 4, async () => {
      const connection = this.#current;
      if (!connection) return;
      try {
        const url = await this.#token();
        if (connection === this.#current) connection.send(JSON.stringify({ op: "refresh", token: url.slice(url.lastIndexOf("/") + 1) }));
      } catch (error) {
        this.#listeners.report(error);
        if (connection === this.#current && left > 1e3) this.#refresh(left / 2);
      }
    });
  }
};
export {
  TokenError,
  Wirepost,
  WirepostError,
  fetchToken,
  indexedDbStore,
  memoryStore,
  sessionStore
};
