// What is published: its size, what a bundler keeps of it, both kinds of module.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { build } from 'esbuild';
import { bundle, file } from '../playground.mjs';

const LIMIT = 6500;
const manifest = JSON.parse(readFileSync('package.json', 'utf8'));

async function bundled(code) {
  const { outputFiles } = await build({
    stdin: { contents: code, resolveDir: process.cwd() },
    bundle: true,
    minify: true,
    format: 'esm',
    write: false,
    external: ['react'],
  });
  return gzipSync(outputFiles[0].contents, { level: 9 }).length;
}

test('a page pays at most 6.5 kB for the whole client', async () => {
  const bytes = await bundled("export * from './dist/index.js'");
  assert.ok(bytes <= LIMIT, `${bytes} bytes, compressed`);
  console.log(`${bytes} bytes`);
});

test('what is not used is not in the bundle', async () => {
  const all = await bundled("export * from './dist/index.js'");
  assert.ok((await bundled("export { fetchToken } from './dist/index.js'")) < 700);
  assert.ok((await bundled("export { Wirepost } from './dist/index.js'")) < all);
  assert.ok((await bundled("export { useWirepostState } from './dist/react.js'")) < 700, 'the hooks bring no client');
});

test('there is no runtime dependency', () => {
  assert.equal(manifest.dependencies, undefined);
});

test('a refused token is known as one, whichever entry it comes from', async () => {
  const require = createRequire(import.meta.url);
  const { SharedWirepost } = require('../dist/tabs.cjs');
  const { TokenError } = require('../dist/index.cjs');
  let calls = 0;
  const token = async () => {
    calls++;
    throw new TokenError(401, 'log in');
  };
  const client = new SharedWirepost({ name: 'x', token, timing: { fastFirst: 1, fastMax: 1 }, onError: () => {} });
  await new Promise((resolve) => setTimeout(resolve, 200));
  assert.equal(calls, 1, 'it waits as after a failure, not as after a refusal');
  client.close();
});

test('the package has what it says, and the changelog has its version', () => {
  const packed = JSON.parse(execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], { encoding: 'utf8' }))[0];
  const files = packed.files.map(({ path }) => path);
  for (const file of ['LICENSE', 'README.md', 'CHANGELOG.md', 'package.json']) assert.ok(files.includes(file), file);
  for (const { import: esm, require: cjs } of Object.values(manifest.exports)) {
    for (const { types, default: code } of [esm, cjs]) {
      for (const file of [types, code]) assert.ok(files.includes(file.slice(2)), file);
    }
  }
  assert.deepEqual(files.filter((file) => !/^dist\/|^[A-Z]+(\.md)?$|^package\.json$/.test(file)), []);
  assert.match(readFileSync('CHANGELOG.md', 'utf8'), new RegExp(`^## ${manifest.version.replaceAll('.', '\\.')}$`, 'm'));
});

test('CommonJS gets the same names', async () => {
  const require = createRequire(import.meta.url);
  for (const entry of ['index', 'tabs', 'react']) {
    const names = Object.keys(await import(`../dist/${entry}.js`)).sort();
    assert.deepEqual(Object.keys(require(`../dist/${entry}.cjs`)).sort(), names, entry);
  }
});

test('the playground of wirepost dev has the newest client', async () => {
  assert.equal(readFileSync(file, 'utf8'), await bundle(), 'write it with `make playground`');
});
