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

/** Pause before a load that failed is tried again; it doubles. */
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 30_000;

/**
 * Loads state when the connection opens for the first time, and again after each gap: what a screen needs so that it never
 * shows something old. A load that fails goes to `console.error`, and is tried again until the component goes.
 */
export function useWirepostReload(client: Client, load: () => unknown): void {
  const latest = useRef(load);
  useEffect(() => {
    latest.current = load;
  });
  useEffect(() => {
    let gone = false;
    let again: ReturnType<typeof setTimeout> | undefined;
    const reload = async (pause = FIRST_PAUSE): Promise<void> => {
      clearTimeout(again);
      try {
        await latest.current();
      } catch (error) {
        console.error(error);
        if (gone) return;
        clearTimeout(again);
        again = setTimeout(() => void reload(Math.min(LONGEST_PAUSE, 2 * pause)), pause);
      }
    };
    // The next message waits for the first attempt.
    const offGap = client.onGap(() => reload());
    const offState = client.onState((state) => {
      if (state === 'open') begin();
    });
    const begin = () => {
      offState();
      void reload();
    };
    if (client.state === 'open') begin();
    return () => {
      gone = true;
      clearTimeout(again);
      offGap();
      offState();
    };
  }, [client]);
}
