// dist/: one file for each entry, as ES module and CommonJS, minified; types beside them.
import { execFileSync } from 'node:child_process';
import { copyFileSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { build } from 'esbuild';

const entries = ['index', 'tabs', 'react'];
rmSync('dist', { recursive: true, force: true });
for (const [format, extension] of [['esm', '.js'], ['cjs', '.cjs']]) {
  await build({
    entryPoints: entries.map((entry) => `src/${entry}.ts`),
    outdir: 'dist',
    bundle: true,
    // What two entries share stands once, where the format can say so.
    splitting: format === 'esm',
    format,
    outExtension: { '.js': extension },
    chunkNames: 'shared-[hash]',
    target: 'es2022',
    minify: true,
    sourcemap: true,
    external: ['react'],
  });
}
execFileSync('node_modules/.bin/tsc', ['-p', '.'], { stdio: 'inherit' });
// The same types for `require`: each file names its imports by the extension of its own kind.
for (const file of readdirSync('dist').filter((file) => file.endsWith('.d.ts'))) {
  const text = readFileSync(`dist/${file}`, 'utf8');
  writeFileSync(`dist/${file.replace(/\.d\.ts$/, '.d.cts')}`, text.replace(/(from\s+'\.\/[^']+)\.js'/g, "$1.cjs'").replace(/(import\('\.\/[^']+)\.js'/g, "$1.cjs'"));
}
copyFileSync('../../LICENSE', 'LICENSE');
