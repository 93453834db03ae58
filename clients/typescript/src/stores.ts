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
  let opened: Promise<IDBDatabase> | undefined;
  const open = () =>
    result(indexedDB.open(database, 1), (request) => {
      request.onupgradeneeded = () => request.result.createObjectStore('cursors');
    }).then((connection) => {
      // Whoever deletes the database waits for this connection otherwise.
      connection.onversionchange = () => connection.close();
      return connection;
    });
  const cursors = async (mode: IDBTransactionMode, again = true): Promise<IDBObjectStore> => {
    try {
      return (await (opened ??= open())).transaction('cursors', mode).objectStore('cursors');
    } catch (error) {
      // A connection may have ended: Safari ends those of pages in the background.
      opened = undefined;
      if (again) return cursors(mode, false);
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
