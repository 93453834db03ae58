/** Why something was not sent, or has no answer. */
export class WirepostError extends Error {
  override readonly name = 'WirepostError';

  constructor(
    /** The `code` of the `nack`, or `closed`, `aborted`, `queue_full`, `duplicate_id`, `no_answer`, `too_large`. */
    readonly code: string,
    reason: string,
    /** It may have reached its receiver all the same. Send it again only with the same `id`. */
    readonly mayHaveArrived = false,
    /** The same message may pass later. */
    readonly retryable = false,
  ) {
    super(`${code}: ${reason}`);
  }
}

/** The token call was answered with an error status. */
export class TokenError extends Error {
  override readonly name = 'TokenError';

  constructor(
    readonly status: number,
    reason: string,
    /** `Retry-After`, in ms. */
    readonly retryAfterMs = 0,
  ) {
    super(`${status}: ${reason}`);
  }
}

/** Gets a connection URL from a backend that passes on the answer of the token call. Throws {@link TokenError}. */
export async function fetchToken(url: string | URL, init?: RequestInit): Promise<string> {
  const response = await fetch(url, init);
  const answer = (await response.json().catch(() => undefined)) ?? {};
  if (response.ok && typeof answer.data === 'string') return answer.data;
  const seconds = Number(response.headers.get('retry-after'));
  throw new TokenError(response.status, answer.description ?? 'no connection URL', seconds > 0 ? seconds * 1000 : 0);
}
