import type { Hint } from './types.js';

const EVENTS: [on: 'window' | 'document', event: string, hint?: Hint][] = [
  ['window', 'online', 'online'],
  ['window', 'offline', 'offline'],
  ['window', 'pageshow', 'resume'],
  ['document', 'freeze', 'freeze'],
  ['document', 'resume', 'resume'],
  ['document', 'visibilitychange'],
];

/** Passes on what a browser says; elsewhere nothing. Returns how to end it. */
export function watchPage(pass: (hint: Hint) => void): () => void {
  const page = globalThis as { window?: EventTarget; document?: Document };
  if (!page.document?.addEventListener || !page.window?.addEventListener) return () => {};
  const ends = EVENTS.map(([on, event, hint]) => {
    const target = page[on]!;
    const listener = () => pass(hint ?? (page.document!.visibilityState === 'visible' ? 'visible' : 'hidden'));
    target.addEventListener(event, listener);
    return () => target.removeEventListener(event, listener);
  });
  return () => ends.forEach((end) => end());
}
