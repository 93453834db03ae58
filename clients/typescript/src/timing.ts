import type { Timing } from './types.js';

export const TIMING: Timing = {
  pingAfter: 20_000,
  pongWithin: 15_000,
  hintPongWithin: 5_000,
  connectWithin: 10_000,
  stableAfter: 5_000,
  fastFirst: 500,
  fastMax: 30_000,
  slowFirst: 30_000,
  slowMax: 900_000,
  nackFirst: 1_000,
  nackMax: 30_000,
};

/** `Retry-After` beyond this is not believed. */
const LONGEST_RETRY_AFTER = 900_000;
/** Timers of more than this fire immediately. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** Ms on a clock that never jumps. */
export const now = (): number => performance.now();

export const timer = (ms: number, run: () => void): ReturnType<typeof setTimeout> =>
  setTimeout(run, Math.min(ms, LONGEST_TIMER));

/** At least half of a bound that doubles: for repeats that should not come early. */
export const halfRandom = (first: number, most: number, failures: number): number => {
  const bound = Math.min(most, first * 2 ** failures);
  return (bound * (1 + Math.random())) / 2;
};

/** How long to wait before each attempt to connect. */
export class Waits {
  #failures = 0;
  #slow = 0;

  constructor(private readonly timing: Timing) {}

  reset(): void {
    this.#failures = this.#slow = 0;
  }

  next(slowly: boolean, retryAfterMs = 0): number {
    const { fastFirst, fastMax, slowFirst, slowMax } = this.timing;
    const wait = slowly
      ? halfRandom(slowFirst, slowMax, this.#slow++)
      : Math.random() * Math.min(fastMax, fastFirst * 2 ** this.#failures++);
    return wait + Math.min(retryAfterMs, LONGEST_RETRY_AFTER);
  }
}
