/** What a client may send and gets, as `wirepost generate typescript` writes it: contents by message type. */
export interface Schema {
  send: object;
  receive: object;
}

/** Any message type with any content. */
export interface AnySchema {
  send: { [messageType: string]: any };
  receive: { [messageType: string]: any };
}

/** The message types of one direction. */
export type Types<T> = Extract<keyof T, string>;

/** A message as it arrives: docs/protocol.md, Envelope. */
export interface Message<Content = any, Type extends string = string> {
  id: string;
  messageType: Type;
  content: Content;
  sendType: 'ServerToClient' | 'ClientToClient';
  /** Whose message it is: another one than your own where that sends to the clients of several businesses. */
  businessType: string;
  /** The businesses that it is for, where there are several. */
  businesses?: string[];
  /** Ms since the epoch, by its sender's clock. */
  timestamp: number;
  expiresAt?: number;
  fromUniqueId?: string;
  fromClientType?: string;
  toUniqueId?: string;
  toClientType?: string;
  tags?: string[];
  correlationId?: string;
  cursor?: string;
  [unknown: string]: unknown;
}

/**
 * - `connecting`: getting a token, or connecting
 * - `open`: messages flow
 * - `waiting`: no connection; it returns on its own
 * - `stopped`: another connection of this identity took its place; it returns when `connect()` is called
 * - `closed`: `close()` was called
 */
export type State = 'connecting' | 'open' | 'waiting' | 'stopped' | 'closed';

/**
 * Why messages may be missing: `retention`, `incarnation` or `unread`, see docs/protocol.md; `resume`: the edge could not
 * continue; `restart`: nothing tells what was pushed while there was no connection (delivery Transient).
 */
export interface Gap {
  reason: string;
}

/** What a platform says of network and page. */
export type Hint = 'online' | 'offline' | 'visible' | 'hidden' | 'freeze' | 'resume';

export interface SendOptions {
  /** One identity, or `*`. */
  to?: string;
  toClientType?: string;
  tags?: string[];
  /** Ms since the epoch; for messages to clients. */
  expiresAt?: number;
  correlationId?: string;
  /** At most 64 bytes. By default a UUID. */
  id?: string;
  /** Gives up, for example `AbortSignal.timeout(30_000)`. Without it a send waits as long as it takes. */
  signal?: AbortSignal;
}

export interface RequestOptions extends SendOptions {
  /** How long to wait for the answer; 30 s by default. */
  timeoutMs?: number;
}

/** Where a cursor is kept. Errors are reported to `onError` and have no other effect. */
export interface CursorStore {
  get(): string | undefined | null | Promise<string | undefined | null>;
  set(cursor: string): void | Promise<void>;
}

/** Waits in ms, see docs/protocol.md; only tests need others. */
export interface Timing {
  pingAfter: number;
  pongWithin: number;
  hintPongWithin: number;
  connectWithin: number;
  stableAfter: number;
  fastFirst: number;
  fastMax: number;
  slowFirst: number;
  slowMax: number;
  nackFirst: number;
  nackMax: number;
}

/** The part of a browser's `WebSocket` that is used; Node's `ws` has it too. */
export interface SocketLike {
  readonly bufferedAmount: number;
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(text: string): void;
  close(code?: number): void;
  /** Only Node's `ws`: ends it without waiting for the other side. */
  terminate?(): void;
}

export interface Options {
  /**
   * Gets a connection URL: the `data` of the token call, usually from your own backend. It is called for a new session,
   * and before a session ends. Throw {@link TokenError} (or use {@link fetchToken}, which does) to tell a refusal from a
   * failure.
   */
  token(signal: AbortSignal): Promise<string>;
  /** Where the cursor is kept; by default in memory. */
  store?: CursorStore;
  /** Default: the global one. Node before 22 has none: pass that of the package `ws`. */
  WebSocket?: new (url: string, protocols: string[]) => SocketLike;
  /** Messages without an answer at most; further ones are rejected with `queue_full`. Default: 1000. */
  queueLimit?: number;
  /** Received messages that wait for handlers at most; beyond that it disconnects until they are handled. Default: 1000. */
  inboxLimit?: number;
  /** Ids that are remembered to drop repeats. Default: 1000. */
  remembered?: number;
  /** Calls of a handler for one message; after the last failure it is reported and passed over. Default: 4. */
  attempts?: number;
  /** Gets what nobody waits for: errors of handlers, stores, token calls. Default: `console.error`. */
  onError?(error: unknown, message?: Message): void;
  timing?: Partial<Timing>;
}
