import type { Connection } from './connection.js';
import { halfRandom, timer } from './timing.js';
import type { Timing } from './types.js';

/** Ids in one frame: docs/protocol.md, Receipts. */
const IN_A_FRAME = 256;
/** Ms in which receipts that are given again wait for each other. */
const TOGETHER = 20;

interface Delivered {
  /** The position before it. */
  before: string | undefined;
  /** The connection that brought it last, if it lives. */
  on: Connection | undefined;
}

/**
 * Gives receipts, each until it is answered. A receipt counts on a connection that delivered its message. So if that ends
 * without an answer, the next one begins before that message, and the receipt is given when it comes again.
 */
export class Receipts {
  /** The last messages, the oldest first. */
  readonly #messages = new Map<string, Delivered>();
  /** Receipts without an answer, and where they were given; nowhere: their messages are to come again. */
  readonly #open = new Map<string, Connection | undefined>();
  /** Those that are about to be given again. */
  readonly #soon = new Map<Connection, { ids: string[]; timer: ReturnType<typeof setTimeout> }>();
  #refusals = 0;

  constructor(
    /** Messages that are remembered: no more than those by which repeats are dropped. */
    private readonly remembered: number,
    private readonly timing: Timing,
  ) {}

  /** Where to continue so that messages come again whose receipts are open; `undefined`: nothing has to come again. */
  get cursor(): string | undefined {
    for (const [id, { before }] of this.#messages) if (before && this.#waits(id)) return before;
    return undefined;
  }

  /** Receipts that wait for their messages to come again. */
  get waiting(): string[] {
    return [...this.#open.keys()].filter((id) => this.#waits(id));
  }

  /** A message has come. Returns whether it came before. */
  delivered(id: string, before: string | undefined, on: Connection): boolean {
    const known = this.#messages.get(id);
    if (known) known.on = on;
    else {
      this.#messages.set(id, { before, on });
      // It is behind all that could come again: what has not, as it expired or lost its tag, never will.
      for (const one of on.awaited) if (this.#waits(one)) this.#open.delete(one);
      on.awaited = [];
    }
    if (this.#messages.size > this.remembered) {
      const [oldest] = this.#messages.keys();
      this.#messages.delete(oldest!);
      if (this.#waits(oldest!)) this.#open.delete(oldest!);
    }
    if (this.#waits(id)) this.#giveSoon([id], on, TOGETHER);
    return !!known;
  }

  /** Gives receipts; `current` is for messages that are not remembered any more. */
  give(ids: string[], current: Connection | undefined): void {
    const by = new Map<Connection, string[]>();
    for (const id of new Set(ids)) {
      const known = this.#messages.get(id);
      const on = known ? known.on : current;
      if (!known && !on) continue;
      this.#open.set(id, on);
      if (this.#open.size > this.remembered) this.#open.delete(this.#open.keys().next().value!);
      if (on) by.set(on, [...(by.get(on) ?? []), id]);
    }
    for (const [on, some] of by) this.#send(some, on);
  }

  /** An answer: a `receipt`, or an `error` about `received`. */
  answer(on: Connection, { op, ids, retryable }: { op: string; ids?: string[]; retryable?: boolean }): void {
    const answered = (ids ?? []).filter((id) => this.#open.get(id) === on);
    if (op === 'receipt') this.#refusals = 0;
    if (op === 'error' && retryable) return this.#giveSoon(answered, on, halfRandom(this.timing.nackFirst, this.timing.nackMax, this.#refusals++));
    for (const id of answered) this.#open.delete(id);
  }

  /** Whether a connection owes answers. */
  owes(on: Connection): boolean {
    for (const one of this.#open.values()) if (one === on) return true;
    return false;
  }

  /**
   * A connection has come to a position. What it has not brought again is behind that, or never comes. An edge sends
   * positions in the middle of a repetition too, so it is not known which.
   */
  reached(on: Connection, cursor: string): void {
    for (const id of on.awaited) {
      const known = this.#messages.get(id);
      if (known && this.#waits(id)) known.before = cursor;
    }
  }

  /** A position can't be continued: what is to come again does not. */
  gap(): void {
    for (const [id, on] of this.#open) if (!on) this.#open.delete(id);
  }

  /** A connection ended, or was left. */
  lost(on: Connection): void {
    clearTimeout(this.#soon.get(on)?.timer);
    this.#soon.delete(on);
    for (const known of this.#messages.values()) if (known.on === on) known.on = undefined;
    for (const [id, one] of this.#open) {
      if (one !== on) continue;
      if (this.#messages.has(id)) this.#open.set(id, undefined);
      else this.#open.delete(id);
    }
  }

  /** Whether a receipt waits for its message to come again. */
  #waits(id: string): boolean {
    return this.#open.has(id) && !this.#open.get(id);
  }

  #giveSoon(ids: string[], on: Connection, ms: number): void {
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
      }),
    });
  }

  #send(ids: string[], on: Connection): void {
    for (let from = 0; from < ids.length; from += IN_A_FRAME) {
      on.send(JSON.stringify({ op: 'received', ids: ids.slice(from, from + IN_A_FRAME) }));
    }
  }
}
