// The driver of this client in a page of a headless Chromium: carries commands and events between page and suite.
import { createInterface } from 'node:readline';
import { openPage } from './browser.mjs';

const page = await openPage({
  files: { '/': 'chromium.html', '/core.mjs': 'core.mjs' },
  onSay: ({ event, log }) => {
    if (event) process.stdout.write(`${JSON.stringify(event)}\n`);
    if (log) process.stderr.write(`${log}\n`);
  },
  onEnd: () => process.exit(),
});
createInterface({ input: process.stdin }).on('line', page.say).on('close', page.end);
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, page.end);
page.open();
