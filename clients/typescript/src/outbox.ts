import type { Connection } from './connection.js';
import { WirepostError } from './errors.js';
import { utf8Length } from './id.js';
import { halfRandom, now, timer } from './timing.js';
import type { Timing } from './types.js';

/** Messages without an answer on one connection: docs/protocol.md, Sending. */
const WINDOW = 64;
/** Kept below the limits, because a network delivers what was sent evenly in clusters. */
const MARGIN = 0.8;
/** Pause before a full socket is looked at again, in ms. */
const FULL = 50;

interface Entry {
  text: string;
  /** On this connection it waits for its answer. */
  on?: Connection | undefined;
  refusals: number;
  /** An earlier attempt has no answer, or one that says that it may have arrived. */
  uncertain: boolean;
  settle(error?: WirepostError): void;
}

/** Sends in order, within the limits, and repeats until there is an answer. */
export class Outbox {
  /** In the order of sending; those without an answer too. */
  readonly #entries = new Map<string, Entry>();
  #connection: Connection | undefined;
  #tokens = 0;
  #filled = 0;
  #notBefore = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly limit: number,
    private readonly timing: Timing,
  ) {}

  /** Settles when there is an answer that is not to be repeated. */
  add(id: string, text: string, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(new WirepostError('aborted', 'before it was sent'));
      if (this.#entries.size >= this.limit) {
        return reject(new WirepostError('queue_full', `${this.limit} messages wait already`, false, true));
      }
      if (this.#entries.has(id)) return reject(new WirepostError('duplicate_id', `${id} waits already`));
      const abort = () => fail('aborted', 'by its signal');
      const fail = (code: string, reason: string) =>
        entry.settle(new WirepostError(code, reason, entry.uncertain || !!entry.on));
      const entry: Entry = {
        text,
        refusals: 0,
        uncertain: false,
        settle: (error) => {
          this.#entries.delete(id);
          signal?.removeEventListener('abort', abort);
          error ? reject(error) : resolve();
        },
      };
      signal?.addEventListener('abort', abort);
      this.#entries.set(id, entry);
      this.#pump();
    });
  }

  /** Sends on this connection from now on; what waits on another one for an answer stays there. */
  use(connection: Connection): void {
    this.#connection = connection;
    this.#tokens = Infinity;
    this.#notBefore = 0;
    this.#pump();
  }

  /** What a connection has not answered is sent again; `tooLarge`: but for the largest, which ended it. */
  lost(connection: Connection, tooLarge = false): void {
    const lost = [...this.#entries.values()].filter(({ on }) => on === connection);
    const largest = tooLarge && lost.reduce<Entry | undefined>((a, b) => (a && a.text.length > b.text.length ? a : b), undefined);
    if (largest) largest.settle(new WirepostError('too_large', 'it ended the connection', largest.uncertain));
    for (const entry of lost) {
      entry.on = undefined;
      entry.uncertain = true;
    }
    if (this.#connection === connection) this.#connection = undefined;
    this.#pump();
  }

  /** An `ack` or `nack`. */
  answer(connection: Connection, frame: any): void {
    if (!connection.unanswered.delete(frame.id)) return;
    const entry = this.#entries.get(frame.id);
    if (entry?.on === connection) {
      entry.on = undefined;
      entry.uncertain ||= !!frame.mayHaveArrived;
      if (frame.op === 'ack') entry.settle();
      else if (!frame.retryable) entry.settle(new WirepostError(frame.code, frame.reason, entry.uncertain));
      else {
        const { nackFirst, nackMax } = this.timing;
        const wait = halfRandom(nackFirst, nackMax, entry.refusals++);
        // All wait: so they keep their order, and a broker that is away is left alone.
        this.#notBefore = now() + (frame.retryAfterMs ?? wait);
      }
    }
    this.#pump();
  }

  /** Rejects everything. */
  close(): void {
    clearTimeout(this.#timer);
    for (const { settle, uncertain, on } of [...this.#entries.values()]) {
      settle(new WirepostError('closed', 'the client was closed', uncertain || !!on));
    }
  }

  #pump(): void {
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
        entry.settle(new WirepostError('too_large', `longer than ${limits.messageBytes} bytes`, entry.uncertain));
        continue;
      }
      this.#tokens--;
      entry.on = connection;
      connection.unanswered.add(id);
      connection.send(entry.text);
    }
  }

  /** How long until one more message fits into the rate, in ms. */
  #untilToken(limits: { messagesPerSecond: number; burst: number }): number {
    const perMs = (limits.messagesPerSecond * MARGIN) / 1000;
    const time = now();
    const most = Math.max(1, Math.floor(limits.burst * MARGIN));
    this.#tokens = Math.min(most, this.#tokens + (time - this.#filled) * perMs);
    this.#filled = time;
    return this.#tokens >= 1 ? 0 : Math.ceil((1 - this.#tokens) / perMs);
  }
}
