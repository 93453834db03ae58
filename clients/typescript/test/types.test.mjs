// The types that `wirepost generate typescript` writes, and those of the client, under the real compiler.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';

test('message names and contents are checked by the compiler', () => {
  const { status, stdout } = spawnSync('node_modules/.bin/tsc', ['-p', 'test/types'], { encoding: 'utf8' });
  assert.equal(status, 0, stdout);
});
