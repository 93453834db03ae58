import { Wirepost } from './client.js';
import { WirepostError } from './errors.js';
import { checkId, newId } from './id.js';
import { Inbox } from './inbox.js';
import { Listeners } from './listeners.js';
import { Requests } from './requests.js';
import type { AnySchema, Gap, Hint, Message, Options, RequestOptions, Schema, SendOptions, State, Types } from './types.js';

export interface TabsOptions extends Options {
  /** The tabs of an origin with the same name share a connection. Name it after the user, so that two logins do not. */
  name: string;
}

interface Pending {
  messageType: string;
  content: unknown;
  options: Omit<SendOptions, 'signal'>;
  settle(error?: WirepostError): void;
}

/** What tabs tell each other. */
type Word =
  | { kind: 'message'; message: Message }
  | { kind: 'gap'; gap: Gap }
  | { kind: 'cursor'; cursor: string }
  | { kind: 'state'; state: State }
  | { kind: 'leader' | 'hello' | 'connect' }
  | { kind: 'hint'; hint: Hint }
  | { kind: 'received'; ids: string[] }
  | { kind: 'send'; id: string; messageType: string; content: unknown; options: Omit<SendOptions, 'signal'> }
  | { kind: 'abort'; id: string }
  | { kind: 'result'; id: string; error?: { code: string; reason: string; mayHaveArrived: boolean; retryable: boolean } };

/**
 * One connection for all tabs of an origin. One tab, elected by a Web Lock, holds it and passes on what arrives; every tab
 * handles every message. When that tab goes, another one takes over and continues at the cursor that it was passed.
 *
 * The same interface as {@link Wirepost}. Without Web Locks and BroadcastChannel each tab has a connection of its own.
 */
export class SharedWirepost<S extends Schema = AnySchema> {
  readonly #options: TabsOptions;
  readonly #inbox: Inbox;
  readonly #requests = new Requests();
  readonly #listeners: Listeners;
  readonly #pending = new Map<string, Pending>();
  /** What other tabs asked this one to send. */
  readonly #foreign = new Map<string, AbortController>();
  readonly #channel: BroadcastChannel | undefined;
  readonly #closing = new AbortController();
  #leader: Wirepost | undefined;
  #release: (() => void) | undefined;
  #heard = -Infinity;
  #cursor: string | undefined;

  constructor(options: TabsOptions) {
    this.#options = options;
    this.#listeners = new Listeners(options.onError);
    const store = {
      get: () => undefined,
      // One tab writes for all: the store is the origin's.
      set: (cursor: string) => (this.#leader ? options.store?.set(cursor) : undefined),
    };
    this.#inbox = new Inbox(
      store,
      options.remembered ?? 1000,
      options.attempts ?? 4,
      (message) => this.#requests.take(message),
      (error, message) => this.#listeners.report(error, message),
      () => {},
    );
    const name = `wirepost:${options.name}`;
    if (!globalThis.navigator?.locks || !globalThis.BroadcastChannel) {
      this.#lead();
      return;
    }
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }) => this.#hear(data);
    this.#say({ kind: 'hello' });
    navigator.locks
      .request(name, { signal: this.#closing.signal }, () => {
        if (this.#listeners.state === 'closed') return;
        this.#lead();
        return new Promise<void>((resolve) => (this.#release = resolve));
      })
      // Closed while it waited; or the page may have no locks, and then each tab has its own connection.
      .catch(() => {
        if (this.#listeners.state !== 'closed' && !this.#leader) this.#lead();
      });
  }

  get state(): State {
    return this.#listeners.state;
  }

  /** Ms since anything arrived. */
  get lastEventAge(): number {
    return this.#leader ? this.#leader.lastEventAge : performance.now() - this.#heard;
  }

  /** Whether this tab holds the connection. */
  get leads(): boolean {
    return !!this.#leader;
  }

  on<T extends Types<S['receive']>>(type: T, handler: (message: Message<S['receive'][T], T>) => unknown): () => void;
  on(pattern: `${string}*${string}` | `${string}#${string}`, handler: (message: Message) => unknown): () => void;
  on(pattern: string, handler: (message: Message<any, any>) => unknown): () => void {
    return this.#inbox.on(pattern, handler);
  }

  onGap(handler: (gap: Gap) => unknown): () => void {
    return this.#inbox.onGap(handler);
  }

  onState(handler: (state: State) => unknown): () => void {
    return this.#listeners.add(handler);
  }

  send<T extends Types<S['send']>>(messageType: T, content: S['send'][T], options: SendOptions = {}): Promise<string> {
    const { signal, id = newId(), ...rest } = options;
    return new Promise((resolve, reject) => {
      if (this.#listeners.state === 'closed') return reject(new WirepostError('closed', 'the client was closed'));
      checkId(id);
      if (signal?.aborted) return reject(new WirepostError('aborted', 'before it was sent'));
      if (this.#pending.size >= (this.#options.queueLimit ?? 1000)) {
        return reject(new WirepostError('queue_full', 'too many messages wait already', false, true));
      }
      if (this.#pending.has(id)) return reject(new WirepostError('duplicate_id', `${id} waits already`));
      // As it is now, in every tab: what is no JSON fails here, before anything waits.
      const plain = JSON.parse(JSON.stringify({ content, options: rest }));
      const abort = () => {
        this.#foreign.get(id)?.abort();
        this.#say({ kind: 'abort', id });
        pending.settle(new WirepostError('aborted', 'by its signal', true));
      };
      const pending: Pending = {
        messageType,
        content: plain.content,
        options: plain.options,
        settle: (error) => {
          this.#pending.delete(id);
          signal?.removeEventListener('abort', abort);
          error ? reject(error) : resolve(id);
        },
      };
      signal?.addEventListener('abort', abort);
      this.#pending.set(id, pending);
      this.#pass(id, pending);
    });
  }

  request<T extends Types<S['send']>>(
    messageType: T,
    content: S['send'][T],
    options: RequestOptions = {},
  ): Promise<Message<S['receive'][Types<S['receive']>]>> {
    const { timeoutMs = 30_000, signal, id = newId(), ...rest } = options;
    return this.#requests.request(id, timeoutMs, signal, (signal) => this.send(messageType, content, { ...rest, id, signal }));
  }

  received(...messages: (Message | string)[]): void {
    const ids = messages.map((message) => (typeof message === 'string' ? message : message.id));
    if (this.#leader) this.#leader.received(...ids);
    else this.#say({ kind: 'received', ids });
  }

  connect(): void {
    if (this.#leader) this.#leader.connect();
    else this.#say({ kind: 'connect' });
  }

  /** What the platform says of network and page; browsers are watched already. */
  hint(hint: Hint): void {
    if (this.#leader) this.#leader.hint(hint);
    else this.#say({ kind: 'hint', hint });
  }

  /** Ends this tab's part; another tab takes over. */
  close(): void {
    if (this.#listeners.state === 'closed') return;
    this.#listeners.set('closed');
    this.#inbox.close();
    this.#leader?.close();
    this.#leader = undefined;
    this.#closing.abort();
    this.#release?.();
    this.#channel?.close();
    for (const { settle } of [...this.#pending.values()]) settle(new WirepostError('closed', 'the client was closed', true));
    this.#requests.close();
  }

  #lead(): void {
    const leader = (this.#leader = new Wirepost({
      ...this.#options,
      store: {
        get: () => this.#cursor ?? this.#options.store?.get(),
        set: (cursor) => {
          this.#cursor = cursor;
          this.#say({ kind: 'cursor', cursor });
          this.#inbox.add({ cursor });
        },
      },
    }));
    leader.onState((state) => {
      this.#listeners.set(state);
      this.#say({ kind: 'state', state });
    });
    leader.onGap((gap) => {
      this.#say({ kind: 'gap', gap });
      this.#inbox.add({ gap });
    });
    leader.on('#', (message) => {
      this.#say({ kind: 'message', message });
      this.#inbox.add({ message });
    });
    // What the tab before it left unanswered is asked for again.
    this.#say({ kind: 'leader' });
    for (const [id, pending] of this.#pending) this.#pass(id, pending);
  }

  /** Sends it here, or asks the tab that can. */
  #pass(id: string, { messageType, content, options }: Pending): void {
    if (!this.#leader) return this.#say({ kind: 'send', id, messageType, content, options });
    void this.#send(id, messageType, content, options).then((error) => this.#pending.get(id)?.settle(error));
  }

  async #send(id: string, messageType: string, content: unknown, options: object): Promise<WirepostError | undefined> {
    const abort = new AbortController();
    this.#foreign.set(id, abort);
    try {
      await this.#leader?.send(messageType, content, { ...options, id, signal: abort.signal });
      return undefined;
    } catch (error) {
      return error as WirepostError;
    } finally {
      this.#foreign.delete(id);
    }
  }

  #hear(word: Word): void {
    if (this.#listeners.state === 'closed') return;
    if (this.#leader) {
      if (word.kind === 'hello') this.#say({ kind: 'state', state: this.#listeners.state });
      else if (word.kind === 'connect') this.#leader.connect();
      else if (word.kind === 'hint') this.#leader.hint(word.hint);
      else if (word.kind === 'received') this.#leader.received(...word.ids);
      else if (word.kind === 'abort') this.#foreign.get(word.id)?.abort();
      else if (word.kind === 'send' && !this.#foreign.has(word.id)) {
        const { id, messageType, content, options } = word;
        void this.#send(id, messageType, content, options).then((error) => {
          // Closed here: the next leader is asked for it.
          if (error?.code === 'closed') return;
          const { code, message, mayHaveArrived, retryable } = error ?? {};
          this.#say({
            kind: 'result',
            id,
            ...(error && { error: { code: code!, reason: message!.slice(code!.length + 2), mayHaveArrived: !!mayHaveArrived, retryable: !!retryable } }),
          });
        });
      }
      return;
    }
    this.#heard = performance.now();
    if (word.kind === 'message') this.#inbox.add({ message: word.message });
    else if (word.kind === 'gap') this.#inbox.add({ gap: word.gap });
    else if (word.kind === 'cursor') this.#cursor = word.cursor;
    else if (word.kind === 'state' && word.state !== 'closed') this.#listeners.set(word.state);
    else if (word.kind === 'leader') for (const [id, pending] of this.#pending) this.#pass(id, pending);
    else if (word.kind === 'result') {
      const { error } = word;
      this.#pending.get(word.id)?.settle(error && new WirepostError(error.code, error.reason, error.mayHaveArrived, error.retryable));
    }
  }

  #say(word: Word): void {
    // What ends late says nothing any more: the channel is closed.
    if (this.#listeners.state !== 'closed') this.#channel?.postMessage(word);
  }
}
