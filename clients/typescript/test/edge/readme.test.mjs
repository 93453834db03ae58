// The ten lines of the README, as they stand but for the port, at a real edge.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { transformSync } from 'esbuild';
import { dev, until } from '../drivers/dev.mjs';

test('the ten lines of the README connect, send and receive', { timeout: 120_000 }, async (t) => {
  const readme = readFileSync('../../README.md', 'utf8');
  const [, lines] = readme.match(/^## Ten lines of TypeScript$[^]*?^```ts\n([^]*?)^```$/m);
  assert.equal(lines.split('\n').filter((line) => line.trim()).length <= 10, true, 'ten lines');
  const edge = await dev(t, '../../examples/payments.yaml', 'payments');
  const here = lines.replace('http://127.0.0.1:8080', edge);
  assert.notEqual(here, lines);

  const folder = mkdtempSync(join(tmpdir(), 'wirepost-readme-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  mkdirSync(join(folder, 'node_modules/@wirepost'), { recursive: true });
  symlinkSync(process.cwd(), join(folder, 'node_modules/@wirepost/client'));
  writeFileSync(join(folder, 'client.mts'), here);
  writeFileSync(join(folder, 'client.mjs'), transformSync(here, { loader: 'ts' }).code);
  const options = ['--noEmit', '--strict', '--module', 'nodenext', '--target', 'es2022', '--lib', 'es2022,dom'];
  execFileSync(join(process.cwd(), 'node_modules/.bin/tsc'), [...options, 'client.mts'], { cwd: folder, stdio: 'inherit' });

  const client = spawn(process.execPath, [...(globalThis.WebSocket ? [] : ['--experimental-websocket']), 'client.mjs'], { cwd: folder });
  t.after(() => client.kill());
  let said = '';
  for (const stream of [client.stdout, client.stderr]) stream.on('data', (data) => (said += data));
  await until('it sends', () => said.includes('the broker has ')).catch((error) => assert.fail(`${error}: ${said}`));
  const answer = await fetch(`${edge}/payments/websocket/messages`, {
    method: 'POST',
    headers: { 'x-api-key': 'dev-payments' },
    body: JSON.stringify({ messageType: 'payment.completed', toUniqueId: 'alice', content: { orderId: 'o-1' } }),
  });
  assert.equal(answer.status, 200, await answer.text());
  await until('it receives', () => said.includes('paid o-1')).catch((error) => assert.fail(`${error}: ${said}`));
  assert.match(said, /^connecting\nopen\n/);
});
