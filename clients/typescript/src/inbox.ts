import { halfRandom, timer } from './timing.js';
import type { CursorStore, Gap, Message } from './types.js';

type Handler<T> = (value: T) => unknown;

interface Item {
  message?: Message;
  gap?: Gap;
  cursor?: string | undefined;
}

/** Pause before a failed handler is called again; it doubles. */
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 5_000;

/** Ids belong to their sender: another client, or another business, could use the id of a message that is yet to come. */
function keyOf({ id, sendType, businessType, fromUniqueId }: Message): string {
  return JSON.stringify([businessType, sendType === 'ClientToClient' ? fromUniqueId : null, id]);
}

/** Hands messages over one after another, and writes each cursor after that. */
export class Inbox {
  readonly #handlers = new Set<readonly [pattern: string, handler: Handler<Message>]>();
  readonly #gapHandlers = new Set<Handler<Gap>>();
  readonly #items: Item[] = [];
  readonly #seen = new Set<string>();
  #busy = false;
  #closed = false;
  #unwritten: string | undefined;
  #writing = false;

  constructor(
    private readonly store: CursorStore,
    private readonly remembered: number,
    private readonly attempts: number,
    /** Whether somebody else took it, such as a request that waits for it. */
    private readonly take: (message: Message) => boolean,
    private readonly onError: (error: unknown, message?: Message) => void,
    /** Called when everything is handled. */
    private readonly onEmpty: () => void,
  ) {}

  get size(): number {
    return this.#items.length;
  }

  on(pattern: string, handler: Handler<Message>): () => void {
    const entry = [pattern, handler] as const;
    this.#handlers.add(entry);
    return () => this.#handlers.delete(entry);
  }

  onGap(handler: Handler<Gap>): () => void {
    this.#gapHandlers.add(handler);
    return () => this.#gapHandlers.delete(handler);
  }

  /** A message is handed over unless its sender's id was seen before; its cursor counts in any case. */
  add(item: Item): void {
    if (item.message?.id) {
      const key = keyOf(item.message);
      if (this.#seen.has(key)) delete item.message;
      this.#seen.delete(key);
      this.#seen.add(key);
      if (this.#seen.size > this.remembered) this.#seen.delete(this.#seen.values().next().value!);
    }
    // An answer goes to its request at once: a handler that runs may wait for it.
    if (item.message && this.take(item.message)) delete item.message;
    this.#items.push(item);
    if (!this.#busy) void this.#run();
  }

  close(): void {
    this.#closed = true;
    this.#items.length = 0;
  }

  async #run(): Promise<void> {
    this.#busy = true;
    let item;
    while ((item = this.#items.shift())) {
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

  async #call<T>(handler: Handler<T>, value: T, message?: Message): Promise<void> {
    for (let attempt = 0; !this.#closed; attempt++) {
      try {
        await handler(value);
        return;
      } catch (error) {
        this.onError(error, message);
        if (attempt + 1 >= this.attempts) return;
        await new Promise<void>((resolve) => timer(halfRandom(FIRST_PAUSE, LONGEST_PAUSE, attempt), resolve));
      }
    }
  }

  /** One write at a time; of those that wait only the newest. */
  #write(cursor: string): void {
    this.#unwritten = cursor;
    if (!this.#writing) void this.#writeAll();
  }

  async #writeAll(): Promise<void> {
    this.#writing = true;
    while (this.#unwritten) {
      const cursor = this.#unwritten;
      this.#unwritten = undefined;
      try {
        const written = this.store.set(cursor);
        if (written) await written;
      } catch (error) {
        this.onError(error);
      }
    }
    this.#writing = false;
  }
}

/** AMQP's topic patterns: `*` is one word, `#` any number of words, also none. */
export function matches(pattern: string, type: string): boolean {
  const [patterns, words] = [pattern.split('.'), type.split('.')];
  let [p, w, hash, taken] = [0, 0, -1, 0];
  while (w < words.length) {
    if (patterns[p] === '#') [hash, taken] = [p++, w];
    else if (p < patterns.length && (patterns[p] === '*' || patterns[p] === words[w])) p++, w++;
    // The last `#` takes one more word.
    else if (hash >= 0) [p, w] = [hash + 1, ++taken];
    else return false;
  }
  while (patterns[p] === '#') p++;
  return p === patterns.length;
}
