// What an answer means and what to do about it, for people who have not read docs/protocol.md yet.

const REFUSALS = {
  invalid_envelope: 'The message is not well formed. The reason says which field.',
  too_large: "The message is longer than the business's messageBytes. Send less, or raise limits.messageBytes in the declaration.",
  rate_limited: 'This client sends faster than limits.messagesPerSecond allows. The library waits and repeats it.',
  identity_mismatch: 'A client may not claim to be another one. Leave fromUniqueId, fromClientType and businessType out.',
  unknown_route: 'No route of the declaration takes this message type from clients. Add one, or correct the type.',
  not_allowed: 'A route knows this message type, but not from this client type or not for this audience. See from, to and audience of the route.',
  expired: 'Its expiresAt has passed.',
  schema_mismatch: "The content does not match the JSON Schema of the route. So your service never sees it. The reason says where.",
  too_complex: 'The content takes too long to check. Send it in several messages.',
  overloaded: 'The edge has too much to check. The library waits and repeats it.',
  broker_unavailable: 'The broker is away. The library waits and repeats it; nothing is lost.',
  timeout: 'The broker did not confirm in time. The message may have arrived, so it is repeated with the same id.',
  aborted: 'It was given up before there was an answer.',
  closed: 'The client was removed before there was an answer.',
  queue_full: 'Too many messages wait already.',
};

const CLOSES = {
  1000: 'closed by the client',
  1005: 'closed by the client',
  1006: 'the line was cut: no goodbye',
  1009: 'a message was far too large',
  1012: 'this edge goes away, or the delivery changed: reconnect',
  1013: 'this edge does not have the business yet',
  3000: 'the session is over: a new token is needed',
  3003: "the page's origin is not in auth.allowedOrigins",
  4008: 'the client was too slow: it resumes',
  4009: 'replaced: this identity has more connections than limits.connectionsPerId',
  4010: 'the business was removed',
};

export const refusal = (code) => REFUSALS[code] ?? 'The edge refused it.';
export const closed = (code) => `${code}${CLOSES[code] ? `, ${CLOSES[code]}` : ''}`;

/** What a `welcome` says about the position. */
export function greeting({ resumed, cursor }, again) {
  if (resumed === true) return 'Resumed: it continues exactly where it was. What it missed follows.';
  if (resumed === false && again) return 'It could not resume: messages may be missing. It gets what comes from now on.';
  if (resumed === false) return cursor ? 'Fresh start: it gets what comes from now on.' : 'Fresh start. Delivery is Transient, so there is no position to resume from.';
  return 'The broker is away: whether anything is missing is not known yet.';
}

/** Why pages of other origins are refused, in words for the origin check. */
export function origin(origin, { result, description }) {
  if (result === 0) return { allowed: true, text: `Pages of ${origin} may connect.` };
  if (result === 40301) {
    const text = `Refused. A browser says which page connects, and ${origin} is not in auth.allowedOrigins of this business. A socket of such a page is closed with 3003, and the terminal of wirepost dev names the origin. To allow it, add it to the declaration; the change applies when you save the file:`;
    return { allowed: false, text, declaration: `  auth:\n    allowedOrigins: ["${origin}"]` };
  }
  return { allowed: false, text: description };
}
