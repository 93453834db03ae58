import { Connection, type Owner, type Welcome } from './connection.js';
import { type TokenError, WirepostError } from './errors.js';
import { checkId, newId } from './id.js';
import { Inbox } from './inbox.js';
import { Listeners } from './listeners.js';
import { Outbox } from './outbox.js';
import { watchPage } from './page.js';
import { Receipts } from './receipts.js';
import { Requests } from './requests.js';
import { memoryStore } from './stores.js';
import { TIMING, Waits, now, timer } from './timing.js';
import type { AnySchema, CursorStore, Gap, Hint, Message, Options, RequestOptions, Schema, SendOptions, SocketLike, State, Timing, Types } from './types.js';

/** Of two connections in a row that die in silence, the pings of the next ones get more time, up to so much more. */
const MOST_PATIENCE = 4;

/**
 * A client of a business. It connects when it is made, and stays connected until `close()`.
 *
 * Messages are handed over one after another, in order, each once. A send resolves when the broker has the message.
 */
export class Wirepost<S extends Schema = AnySchema> {
  readonly #options: Options;
  readonly #timing: Timing;
  readonly #store: CursorStore;
  readonly #waits: Waits;
  readonly #inbox: Inbox;
  readonly #outbox: Outbox;
  readonly #receipts: Receipts;
  readonly #listeners: Listeners;
  readonly #requests = new Requests();
  readonly #unwatch: () => void;
  readonly #owner: Owner = {
    onFrame: (connection, frame) => this.#onFrame(connection, frame),
    onEnd: (connection, code) => this.#onEnd(connection, code),
  };
  /** The one that counts: opening, or open. */
  #current: Connection | undefined;
  /** Opening, while a drain lets the current one live. */
  #next: Connection | undefined;
  /** Those that owe answers, and count no more. */
  readonly #old = new Set<Connection>();
  /** The newest position, for reconnecting. What is handled is in the store. */
  #cursor: string | undefined;
  #base = '';
  #resumeToken: string | undefined;
  /** Had a `welcome` once. */
  #greeted = false;
  /** Too many messages wait for handlers; it returns when they are handled. */
  #full = false;
  #silentDeaths = 0;
  /** An older attempt to connect gives up. */
  #attempt = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #refreshTimer: ReturnType<typeof setTimeout> | undefined;
  #calls = new AbortController();

  constructor(options: Options) {
    this.#options = options;
    this.#timing = { ...TIMING, ...options.timing };
    this.#store = options.store ?? memoryStore();
    this.#waits = new Waits(this.#timing);
    this.#listeners = new Listeners(options.onError);
    this.#outbox = new Outbox(options.queueLimit ?? 1000, this.#timing);
    const remembered = options.remembered ?? 1000;
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
      },
    );
    this.#unwatch = watchPage((hint) => this.hint(hint));
    void this.#start();
  }

  get state(): State {
    return this.#listeners.state;
  }

  /** Ms since anything arrived on the connection; infinite without one. */
  get lastEventAge(): number {
    return this.#current?.welcome ? now() - this.#current.heard : Infinity;
  }

  /**
   * Handles messages of a type, or of a pattern: `*` is one word, `#` any number of words. A handler may return a promise:
   * the next message waits for it. If it fails, it is called again. Returns how to end it.
   */
  on<T extends Types<S['receive']>>(type: T, handler: (message: Message<S['receive'][T], T>) => unknown): () => void;
  on(pattern: `${string}*${string}` | `${string}#${string}`, handler: (message: Message) => unknown): () => void;
  on(pattern: string, handler: (message: Message<any, any>) => unknown): () => void {
    return this.#inbox.on(pattern, handler);
  }

  /** Messages may be missing: fetch your state again. A handler is treated like one of a message. */
  onGap(handler: (gap: Gap) => unknown): () => void {
    return this.#inbox.onGap(handler);
  }

  onState(handler: (state: State) => unknown): () => void {
    return this.#listeners.add(handler);
  }

  /**
   * Sends a message, and again until there is an answer. Resolves with its id when the broker has it, and rejects with a
   * {@link WirepostError}.
   */
  async send<T extends Types<S['send']>>(messageType: T, content: S['send'][T], options: SendOptions = {}): Promise<string> {
    const { to: toUniqueId, signal, id = newId(), ...rest } = options;
    if (this.#listeners.state === 'closed') throw new WirepostError('closed', 'the client was closed');
    checkId(id);
    await this.#outbox.add(id, JSON.stringify({ id, messageType, toUniqueId, ...rest, content }), signal);
    return id;
  }

  /** Sends a message and resolves with the one that answers it by its `correlationId`; handlers do not get that one. */
  async request<T extends Types<S['send']>>(
    messageType: T,
    content: S['send'][T],
    options: RequestOptions = {},
  ): Promise<Message<S['receive'][Types<S['receive']>]>> {
    const { timeoutMs = 30_000, signal, id = newId(), ...rest } = options;
    return this.#requests.request(id, timeoutMs, signal, (signal) => this.send(messageType, content, { ...rest, id, signal }));
  }

  /**
   * Tells the business that these messages were stored or shown, on a route with `receipts`, and again until the edge has
   * answered, also by the next connection. The last messages can be told of, as many as `remembered`.
   */
  received(...messages: (Message | string)[]): void {
    if (this.#listeners.state === 'closed') return;
    const ids = messages.map((message) => (typeof message === 'string' ? message : message.id));
    this.#receipts.give(ids, this.#current?.welcome && this.#current);
  }

  /** Connects now, if there is no connection. After `stopped` it is the only way back: call it when the user does something. */
  connect(): void {
    if (this.#listeners.state === 'waiting' || this.#listeners.state === 'stopped') void this.#connect();
  }

  /** What the platform says of network and page. Browsers are watched already; call it elsewhere, as in React Native. */
  hint(hint: Hint): void {
    if (hint !== 'online' && hint !== 'visible' && hint !== 'resume') return;
    if (this.#listeners.state === 'waiting') void this.#connect();
    else this.#current?.test(hint === 'online' ? 0 : this.#timing.pingAfter);
  }

  /** Ends it for good. What waits for an answer is rejected with `closed`. */
  close(): void {
    if (this.#listeners.state === 'closed') return;
    this.#attempt++;
    this.#calls.abort();
    clearTimeout(this.#timer);
    clearTimeout(this.#refreshTimer);
    this.#unwatch();
    for (const connection of [this.#current, this.#next, ...this.#old]) connection?.leave();
    this.#current = this.#next = undefined;
    this.#old.clear();
    this.#inbox.close();
    this.#listeners.set('closed');
    this.#outbox.close();
    this.#requests.close();
  }

  #onFrame(connection: Connection, frame: any): void {
    const counts = connection === this.#current;
    switch (frame.op) {
      case 'welcome':
        return this.#welcomed(connection, frame);
      case 'ack':
      case 'nack':
        this.#outbox.answer(connection, frame);
        if (frame.op === 'nack' && !frame.id) this.#listeners.report(new WirepostError(frame.code, frame.reason));
        return this.#leaveOld(connection);
      case 'receipt':
      case 'error':
        this.#receipts.answer(connection, frame);
        return this.#leaveOld(connection);
      case 'drain':
        connection.leaving = true;
        if (counts && !this.#next) this.#moveIn(Math.random() * (frame.reconnectWithinMs ?? 0));
        return;
    }
    // What the old one delivers after the welcome of the new one comes on that one too.
    if (!counts || !connection.welcome) return;
    switch (frame.op) {
      case 'position':
        connection.gapReported = connection.again = false;
        this.#resumeToken = frame.resumeToken ?? this.#resumeToken;
        if (frame.cursor) this.#receipts.reached(connection, frame.cursor);
        return this.#receive({ cursor: frame.cursor });
      case 'gap':
        if (connection.again) return this.#fromNewest(connection);
        if (!connection.gapReported) this.#receive({ gap: { reason: frame.reason } });
        connection.gapReported = false;
        return;
      case 'expiring':
        return this.#refresh(frame.inSeconds * 1000);
      case 'refreshed':
        this.#resumeToken = frame.resumeToken;
        return;
    }
    if (typeof frame.op === 'string' || typeof frame.messageType !== 'string') return;
    connection.gapReported = false;
    // What comes again is behind the position already.
    connection.again = this.#receipts.delivered(frame.id, this.#cursor, connection) && connection.again;
    this.#receive({ message: frame, cursor: connection.again ? undefined : frame.cursor });
  }

  #onEnd(connection: Connection, code: number): void {
    this.#outbox.lost(connection, code === 1009);
    this.#receipts.lost(connection);
    if (this.#old.delete(connection)) return;
    if (connection.welcome && now() - connection.began >= this.#timing.stableAfter) this.#waits.reset();
    if (code === 3000) this.#resumeToken = undefined;
    if (connection === this.#next) {
      // The old one still lives.
      this.#next = undefined;
      return this.#moveIn(this.#waits.next(false));
    }
    this.#silentDeaths = code === 1006 && connection.welcome && connection.frames < 2 ? this.#silentDeaths + 1 : 0;
    this.#current = this.#next;
    this.#next = undefined;
    if (this.#current) return this.#listeners.set('connecting');
    if (code === 4009 && !connection.leaving) return this.#stop();
    this.#wait(code === 3003 || code === 4010);
  }

  async #start(): Promise<void> {
    const attempt = ++this.#attempt;
    let cursor;
    try {
      cursor = await this.#store.get();
    } catch (error) {
      this.#listeners.report(error);
    }
    this.#cursor = cursor || undefined;
    if (attempt === this.#attempt) await this.#connect();
  }

  async #connect(): Promise<void> {
    clearTimeout(this.#timer);
    if (this.#full || this.#current) return;
    const attempt = ++this.#attempt;
    this.#listeners.set('connecting');
    try {
      const token = await this.#credential();
      if (attempt === this.#attempt) this.#current = this.#open(token);
    } catch (error) {
      if (attempt === this.#attempt) this.#failed(error);
    }
  }

  /** After a drain: a second connection, while the first one still serves. */
  #moveIn(wait: number): void {
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

  #open(token: string): Connection {
    const Socket = this.#options.WebSocket ?? (globalThis.WebSocket as unknown as new (url: string, protocols: string[]) => SocketLike);
    if (!Socket) throw new Error('there is no WebSocket here: pass one in the options');
    const patience = Math.min(MOST_PATIENCE, 2 ** Math.max(0, this.#silentDeaths - 1));
    const before = this.#receipts.cursor;
    const connection = new Connection(Socket, this.#base, token, before ?? this.#cursor, this.#timing, patience, this.#owner);
    connection.again = !!before && before !== this.#cursor;
    if (before) connection.awaited = this.#receipts.waiting;
    return connection;
  }

  /** What to connect with, at `#base`: the resume token, else a new ticket. */
  async #credential(): Promise<string> {
    if (this.#resumeToken) return this.#resumeToken;
    const url = await this.#token();
    const end = url.lastIndexOf('/') + 1;
    this.#base = url.slice(0, end);
    return url.slice(end);
  }

  /** A token call, which may not take forever. */
  async #token(): Promise<string> {
    const call = new AbortController();
    const abort = () => call.abort();
    this.#calls.signal.addEventListener('abort', abort);
    const late = timer(this.#timing.connectWithin, abort);
    try {
      return await Promise.race([
        this.#options.token(call.signal),
        new Promise<never>((_, reject) => call.signal.addEventListener('abort', () => reject(new Error('the token call had no answer')))),
      ]);
    } finally {
      clearTimeout(late);
      this.#calls.signal.removeEventListener('abort', abort);
    }
  }

  #failed(error: unknown): void {
    this.#listeners.report(error);
    // Not by its class: each CommonJS entry has one of its own.
    const { status = 0, retryAfterMs = 0 } = (error ?? {}) as Partial<TokenError>;
    this.#wait(status >= 400 && status < 500 && status !== 408 && status !== 429, retryAfterMs);
  }

  #wait(slowly: boolean, retryAfterMs = 0): void {
    clearTimeout(this.#timer);
    this.#timer = timer(this.#waits.next(slowly, retryAfterMs), () => void this.#connect());
    this.#listeners.set('waiting');
  }

  #stop(): void {
    clearTimeout(this.#timer);
    this.#listeners.set('stopped');
  }

  #welcomed(connection: Connection, { cursor, resumed, resumeToken }: Welcome): void {
    if (resumed === false && connection.again) {
      this.#resumeToken = resumeToken;
      return this.#fromNewest(connection);
    }
    if (connection === this.#next) {
      if (this.#current) this.#old.add(this.#current);
      this.#current = connection;
      this.#next = undefined;
    }
    if (connection !== this.#current) return;
    clearTimeout(this.#refreshTimer);
    this.#resumeToken = resumeToken;
    let gap: Gap | undefined;
    if (!connection.cursor) {
      // Nothing tells what was pushed since the connection before.
      if (this.#greeted) gap = { reason: 'restart' };
    } else if (resumed === false) {
      gap = { reason: 'resume' };
      connection.gapReported = true;
      this.#receipts.gap();
      this.#cursor = undefined;
    }
    this.#greeted = true;
    this.#receive(gap ? { gap, cursor } : connection.again ? {} : { cursor });
    // A full inbox may have left it.
    if (connection !== this.#current) return;
    this.#listeners.set('open');
    this.#outbox.use(connection);
    for (const old of [...this.#old]) this.#leaveOld(old);
  }

  /**
   * The position before a message without a receipt can't be continued. The newest one perhaps can, so there is no gap
   * yet: the next connection begins there, without the receipts that wait.
   */
  #fromNewest(connection: Connection): void {
    connection.leave();
    this.#outbox.lost(connection);
    this.#receipts.lost(connection);
    this.#receipts.gap();
    if (connection === this.#next) {
      // The old one still lives.
      this.#next = undefined;
      return this.#moveIn(0);
    }
    this.#current = this.#next;
    this.#next = undefined;
    if (this.#current) this.#listeners.set('connecting');
    else void this.#connect();
  }

  /** An old connection is left when it owes no answers. */
  #leaveOld(connection: Connection): void {
    if (connection.unanswered.size || this.#receipts.owes(connection) || !this.#old.delete(connection)) return;
    connection.leave();
    this.#receipts.lost(connection);
  }

  #receive(item: { message?: Message; gap?: Gap; cursor?: string | undefined }): void {
    if (item.cursor) this.#cursor = item.cursor;
    this.#inbox.add(item);
    const connection = this.#current;
    if (this.#inbox.size <= (this.#options.inboxLimit ?? 1000) || !connection) return;
    this.#full = true;
    this.#attempt++;
    this.#current = undefined;
    for (const one of [connection, this.#next]) {
      one?.leave();
      if (one) this.#outbox.lost(one);
      if (one) this.#receipts.lost(one);
    }
    this.#next = undefined;
    clearTimeout(this.#timer);
    this.#listeners.set('waiting');
  }

  /** Prolongs the session with a new ticket; what fails is tried again while there is time. */
  #refresh(left: number): void {
    clearTimeout(this.#refreshTimer);
    this.#refreshTimer = timer((Math.random() * left) / 4, async () => {
      const connection = this.#current;
      if (!connection) return;
      try {
        const url = await this.#token();
        if (connection === this.#current) connection.send(JSON.stringify({ op: 'refresh', token: url.slice(url.lastIndexOf('/') + 1) }));
      } catch (error) {
        this.#listeners.report(error);
        if (connection === this.#current && left > 1000) this.#refresh(left / 2);
      }
    });
  }
}
