import { useEffect, useRef, useSyncExternalStore } from 'react';
import type { Gap, Message, State } from './types.js';

/** A `Wirepost` or a `SharedWirepost`. */
export interface Client {
  readonly state: State;
  on(pattern: any, handler: (message: any) => unknown): () => void;
  onGap(handler: (gap: Gap) => unknown): () => void;
  onState(handler: (state: State) => unknown): () => void;
}

/** The client's state; renders again when it changes. */
export function useWirepostState(client: Client): State {
  return useSyncExternalStore(
    (changed) => client.onState(changed),
    () => client.state,
    () => 'connecting',
  );
}

/** Handles messages while the component is mounted. The handler may change with each render. */
export function useWirepostMessage<M extends Message = Message>(
  client: Client,
  pattern: string,
  handler: (message: M) => unknown,
): void {
  const latest = useRef(handler);
  useEffect(() => {
    latest.current = handler;
  });
  useEffect(() => client.on(pattern, (message) => latest.current(message)), [client, pattern]);
}

/**
 * Loads state when the connection opens for the first time, and again after each gap: what a screen needs so that it never
 * shows something old.
 */
export function useWirepostReload(client: Client, load: () => unknown): void {
  const latest = useRef(load);
  useEffect(() => {
    latest.current = load;
  });
  useEffect(() => {
    const offGap = client.onGap(() => latest.current());
    if (client.state === 'open') {
      void latest.current();
      return offGap;
    }
    const offState = client.onState((state) => {
      if (state !== 'open') return;
      offState();
      void latest.current();
    });
    return () => {
      offGap();
      offState();
    };
  }, [client]);
}
