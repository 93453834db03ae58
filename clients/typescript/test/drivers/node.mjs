// The driver of this client in Node: node --expose-gc test/drivers/node.mjs
import { createInterface } from 'node:readline';
import { WebSocket } from 'ws';
import * as library from '../../dist/index.js';
import { driver } from './core.mjs';

const command = driver(library, (event) => process.stdout.write(`${JSON.stringify(event)}\n`), {
  name: `typescript in Node ${process.version}`,
  // Node has one of its own since 22.
  WebSocket: process.env.WIREPOST_TEST_GLOBAL_WEBSOCKET ? globalThis.WebSocket : WebSocket,
  log: (text) => process.stderr.write(`${text}\n`),
  heapBytes: () => {
    globalThis.gc();
    globalThis.gc();
    return process.memoryUsage().heapUsed;
  },
});
createInterface({ input: process.stdin })
  .on('line', (line) => command(JSON.parse(line)))
  .on('close', () => process.exit());
