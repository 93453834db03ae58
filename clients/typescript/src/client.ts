import { Connection, type Owner, type Welcome } from './connection.js';
import { TokenError, WirepostError } from './errors.js';
import { newId } from './id.js';
import { Inbox } from './inbox.js';
import { Outbox, utf8Length } from './outbox.js';
import { watchPage } from './page.js';
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
  readonly #stateHandlers = new Set<(state: State) => unknown>();
  readonly #requests = new Requests();
  readonly #unwatch: () => void;
  readonly #owner: Owner = {
    onFrame: (connection, frame) => this.#onFrame(connection, frame),
    onEnd: (connection, code) => this.#onEnd(connection, code),
  };
  #state: State = 'connecting';
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
    this.#outbox = new Outbox(options.queueLimit ?? 1000, this.#timing);
    this.#inbox = new Inbox(
      this.#store,
      options.remembered ?? 1000,
      options.attempts ?? 4,
      (message) => this.#requests.take(message),
      (error, message) => this.#report(error, message),
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
    return this.#state;
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
    const entry = [pattern, handler] as const;
    this.#inbox.handlers.add(entry);
    return () => this.#inbox.handlers.delete(entry);
  }

  /** Messages may be missing: fetch your state again. A handler is treated like one of a message. */
  onGap(handler: (gap: Gap) => unknown): () => void {
    this.#inbox.gapHandlers.add(handler);
    return () => this.#inbox.gapHandlers.delete(handler);
  }

  onState(handler: (state: State) => unknown): () => void {
    this.#stateHandlers.add(handler);
    return () => this.#stateHandlers.delete(handler);
  }

  /**
   * Sends a message, and again until there is an answer. Resolves with its id when the broker has it, and rejects with a
   * {@link WirepostError}.
   */
  async send<T extends Types<S['send']>>(messageType: T, content: S['send'][T], options: SendOptions = {}): Promise<string> {
    const { to: toUniqueId, signal, id = newId(), ...rest } = options;
    if (this.#state === 'closed') throw new WirepostError('closed', 'the client was closed');
    // The answer would come without it.
    if (typeof id !== 'string' || !id || utf8Length(id) > 64) throw new WirepostError('invalid_envelope', 'an id has 1 to 64 bytes');
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

  /** Connects now, if there is no connection. After `stopped` it is the only way back: call it when the user does something. */
  connect(): void {
    if (this.#state === 'waiting' || this.#state === 'stopped') void this.#connect();
  }

  /** What the platform says of network and page. Browsers are watched already; call it elsewhere, as in React Native. */
  hint(hint: Hint): void {
    if (hint !== 'online' && hint !== 'visible' && hint !== 'resume') return;
    if (this.#state === 'waiting') void this.#connect();
    else this.#current?.test(hint === 'online' ? 0 : this.#timing.pingAfter);
  }

  /** Ends it for good. What waits for an answer is rejected with `closed`. */
  close(): void {
    if (this.#state === 'closed') return;
    this.#attempt++;
    this.#calls.abort();
    clearTimeout(this.#timer);
    clearTimeout(this.#refreshTimer);
    this.#unwatch();
    for (const connection of [this.#current, this.#next, ...this.#old]) connection?.leave();
    this.#current = this.#next = undefined;
    this.#old.clear();
    this.#inbox.close();
    this.#set('closed');
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
        if (frame.op === 'nack' && !frame.id) this.#report(new WirepostError(frame.code, frame.reason));
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
        return this.#receive({ cursor: frame.cursor });
      case 'gap':
        if (connection.gapReported) connection.gapReported = false;
        else this.#receive({ gap: { reason: frame.reason } });
        return;
      case 'expiring':
        return this.#refresh(frame.inSeconds * 1000);
      case 'refreshed':
        this.#resumeToken = frame.resumeToken;
        return;
    }
    if (typeof frame.op !== 'string' && typeof frame.messageType === 'string') this.#receive({ message: frame, cursor: frame.cursor });
  }

  #onEnd(connection: Connection, code: number): void {
    this.#outbox.lost(connection);
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
    if (this.#current) return this.#set('connecting');
    if (code === 4009 && !connection.leaving) return this.#stop();
    this.#wait(code === 3003 || code === 4010);
  }

  async #start(): Promise<void> {
    const attempt = ++this.#attempt;
    let cursor;
    try {
      cursor = await this.#store.get();
    } catch (error) {
      this.#report(error);
    }
    this.#cursor = cursor || undefined;
    if (attempt === this.#attempt) await this.#connect();
  }

  async #connect(): Promise<void> {
    clearTimeout(this.#timer);
    if (this.#full || this.#current) return;
    const attempt = ++this.#attempt;
    this.#set('connecting');
    try {
      const url = await this.#url();
      if (attempt === this.#attempt) this.#current = this.#open(url);
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
        const url = await this.#url();
        if (attempt === this.#attempt && this.#current) this.#next = this.#open(url);
      } catch (error) {
        if (attempt === this.#attempt && this.#current) this.#moveIn(this.#waits.next(false));
      }
    });
  }

  #open(url: string): Connection {
    const Socket = this.#options.WebSocket ?? (globalThis.WebSocket as unknown as new (url: string, protocol: string) => SocketLike);
    if (!Socket) throw new Error('there is no WebSocket here: pass one in the options');
    const patience = Math.min(MOST_PATIENCE, 2 ** Math.max(0, this.#silentDeaths - 1));
    return new Connection(Socket, url, this.#cursor, this.#timing, patience, this.#owner);
  }

  /** Where to connect: with the resume token, else with a new ticket. */
  async #url(): Promise<string> {
    if (this.#resumeToken) return this.#base + this.#resumeToken;
    const url = await this.#token();
    this.#base = url.slice(0, url.lastIndexOf('/') + 1);
    return url;
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
    this.#report(error);
    const { status = 0, retryAfterMs = 0 } = error instanceof TokenError ? error : {};
    this.#wait(status >= 400 && status < 500 && status !== 408 && status !== 429, retryAfterMs);
  }

  #wait(slowly: boolean, retryAfterMs = 0): void {
    clearTimeout(this.#timer);
    this.#timer = timer(this.#waits.next(slowly, retryAfterMs), () => void this.#connect());
    this.#set('waiting');
  }

  #stop(): void {
    clearTimeout(this.#timer);
    this.#set('stopped');
  }

  #welcomed(connection: Connection, { cursor, resumed, resumeToken }: Welcome): void {
    if (connection === this.#next) {
      if (this.#current) this.#old.add(this.#current);
      this.#current = connection;
      this.#next = undefined;
    }
    if (connection !== this.#current) return;
    clearTimeout(this.#refreshTimer);
    this.#resumeToken = resumeToken;
    let gap: Gap | undefined;
    if (resumed === false) {
      if (connection.cursor) gap = { reason: 'resume' };
      else if (this.#greeted) gap = { reason: 'restart' };
      connection.gapReported = !!connection.cursor;
      this.#cursor = undefined;
    }
    this.#greeted = true;
    this.#receive(gap ? { gap, cursor } : { cursor });
    // A full inbox may have left it.
    if (connection !== this.#current) return;
    this.#set('open');
    this.#outbox.use(connection);
    for (const old of [...this.#old]) this.#leaveOld(old);
  }

  /** An old connection is left when it owes no answers. */
  #leaveOld(connection: Connection): void {
    if (!connection.unanswered.size && this.#old.delete(connection)) connection.leave();
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
    }
    this.#next = undefined;
    clearTimeout(this.#timer);
    this.#set('waiting');
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
        this.#report(error);
        if (connection === this.#current && left > 1000) this.#refresh(left / 2);
      }
    });
  }

  #set(state: State): void {
    if (this.#state === state && state !== 'connecting') return;
    this.#state = state;
    for (const handler of [...this.#stateHandlers]) {
      try {
        handler(state);
      } catch (error) {
        this.#report(error);
      }
    }
  }

  #report(error: unknown, message?: Message): void {
    if (this.#state === 'closed') return;
    try {
      (this.#options.onError ?? console.error)(error, message);
    } catch (thrown) {
      console.error(thrown);
    }
  }
}
