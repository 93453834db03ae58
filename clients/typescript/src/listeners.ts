import type { Message, Options, State } from './types.js';

/** Who is told of states and errors. What they throw, immediately or later, ends nothing. */
export class Listeners {
  state: State = 'connecting';
  readonly #handlers = new Set<(state: State) => unknown>();

  constructor(private readonly onError: Options['onError']) {}

  add(handler: (state: State) => unknown): () => void {
    this.#handlers.add(handler);
    return () => this.#handlers.delete(handler);
  }

  /** Tells each change, and `connecting` at the start. */
  set(state: State): void {
    if (this.state === state && state !== 'connecting') return;
    this.state = state;
    for (const handler of [...this.#handlers]) (async () => handler(state))().catch((error) => this.report(error));
  }

  report(error: unknown, message?: Message): void {
    if (this.state === 'closed') return;
    (async () => (this.onError ?? console.error)(error, message))().catch(console.error);
  }
}
