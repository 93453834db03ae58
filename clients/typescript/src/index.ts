export { Wirepost } from './client.js';
export { WirepostError, TokenError, fetchToken } from './errors.js';
export { memoryStore, sessionStore, indexedDbStore } from './stores.js';
export type {
  AnySchema,
  CursorStore,
  Gap,
  Hint,
  Message,
  Options,
  RequestOptions,
  Schema,
  SendOptions,
  SocketLike,
  State,
  Timing,
  Types,
} from './types.js';
