// What is published: its size, what a bundler keeps of it, both kinds of module.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { build } from 'esbuild';

const LIMIT = 6000;
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

test('a page pays at most 6 kB for the whole client', async () => {
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

test('CommonJS gets the same names', async () => {
  const require = createRequire(import.meta.url);
  for (const entry of ['index', 'tabs', 'react']) {
    const names = Object.keys(await import(`../dist/${entry}.js`)).sort();
    assert.deepEqual(Object.keys(require(`../dist/${entry}.cjs`)).sort(), names, entry);
  }
});
