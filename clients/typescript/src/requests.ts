import { WirepostError } from './errors.js';
import { timer } from './timing.js';
import type { Message } from './types.js';

interface Waiting {
  resolve(message: Message): void;
  reject(error: unknown): void;
}

/** Sends that wait for the message that answers them. */
export class Requests {
  readonly #waiting = new Map<string, Waiting>();

  /** Whether a request waited for this message. */
  take(message: Message): boolean {
    const waiting = message.correlationId ? this.#waiting.get(message.correlationId) : undefined;
    waiting?.resolve(message);
    return !!waiting;
  }

  /** Sends, and waits for the answer to the message of this id. */
  async request(
    id: string,
    timeoutMs: number,
    signal: AbortSignal | undefined,
    send: (signal: AbortSignal) => Promise<unknown>,
  ): Promise<Message> {
    const stop = new AbortController();
    let code = 'aborted';
    let reason = 'by its signal';
    const abort = () => stop.abort();
    signal?.addEventListener('abort', abort);
    const timeout = timer(timeoutMs, () => {
      code = 'no_answer';
      reason = `within ${timeoutMs} ms`;
      abort();
    });
    try {
      return await new Promise<Message>((resolve, reject) => {
        const fail = (mayHaveArrived: boolean) => reject(new WirepostError(code, reason, mayHaveArrived));
        this.#waiting.set(id, { resolve, reject });
        // Later than the rejection of a send that had no answer yet: that one knows whether it was sent at all.
        stop.signal.addEventListener('abort', () => timer(0, () => fail(true)));
        if (signal?.aborted) abort();
        send(stop.signal).catch((error) => (error.code === 'aborted' ? fail(error.mayHaveArrived) : reject(error)));
      });
    } finally {
      clearTimeout(timeout);
      signal?.removeEventListener('abort', abort);
      this.#waiting.delete(id);
    }
  }

  /** Rejects everything. */
  close(): void {
    // Those whose message had no answer were rejected already, by their send.
    timer(0, () => {
      for (const { reject } of this.#waiting.values()) reject(new WirepostError('closed', 'the client was closed', true));
    });
  }
}
