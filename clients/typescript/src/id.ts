/** A unique id. `randomUUID` is missing on pages without TLS, and in React Native. */
export const newId = (): string =>
  globalThis.crypto?.randomUUID?.() ?? [1, 2, 3].map(() => Math.random().toString(36).slice(2, 12)).join('');
