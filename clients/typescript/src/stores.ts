import type { CursorStore } from './types.js';

/** Until the page is reloaded or the process ends. */
export function memoryStore(cursor?: string): CursorStore & { cursor: string | undefined } {
  return {
    cursor,
    get() {
      return this.cursor;
    },
    set(cursor) {
      this.cursor = cursor;
    },
  };
}

/** For a tab, across reloads. One key for each client. */
export function sessionStore(key: string): CursorStore {
  return {
    get: () => sessionStorage.getItem(key),
    set: (cursor) => sessionStorage.setItem(key, cursor),
  };
}

/** For an origin, across restarts of the browser. One key for each client. */
export function indexedDbStore(key: string, database = 'wirepost'): CursorStore {
  const open = () =>
    result(indexedDB.open(database, 1), (request) => {
      request.onupgradeneeded = () => request.result.createObjectStore('cursors');
    });
  let opened: Promise<IDBDatabase> | undefined;
  const cursors = async (mode: IDBTransactionMode) => {
    // What failed is tried again.
    opened ??= open().catch((error) => ((opened = undefined), Promise.reject(error)));
    try {
      return (await opened).transaction('cursors', mode).objectStore('cursors');
    } catch (error) {
      // Safari ends connections of pages in the background.
      opened = undefined;
      throw error;
    }
  };
  return {
    get: async () => result((await cursors('readonly')).get(key)),
    set: async (cursor) => void (await result((await cursors('readwrite')).put(cursor, key))),
  };
}

function result<R extends IDBRequest>(request: R, prepare?: (request: R) => void): Promise<R['result']> {
  prepare?.(request);
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
