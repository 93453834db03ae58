import { WirepostError } from './errors.js';

/** A unique id. `randomUUID` is missing on pages without TLS, and in React Native. */
export const newId = (): string =>
  globalThis.crypto?.randomUUID?.() ?? [1, 2, 3].map(() => Math.random().toString(36).slice(2, 12)).join('');

/** Refuses an id that an edge can't return in its answer: the send would never end. */
export function checkId(id: unknown): void {
  if (typeof id === 'string' && id && utf8Length(id) <= 64 && !/[\ud800-\udfff]/u.test(id)) return;
  throw new WirepostError('invalid_envelope', 'an id is a string of 1 to 64 bytes');
}

export function utf8Length(text: string): number {
  let length = text.length;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    // Each half of a surrogate pair is two of its four bytes.
    if (code > 0x7f) length += code > 0x7ff && (code < 0xd800 || code > 0xdfff) ? 2 : 1;
  }
  return length;
}
