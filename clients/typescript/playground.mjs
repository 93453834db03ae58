// cli/playground/client.js: this client as one file, for the playground of `wirepost dev`. Not minified: its changes are
// reviewed. Called as a program it writes the file.
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

export const file = fileURLToPath(new URL('../../cli/playground/client.js', import.meta.url));

export async function bundle() {
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL('src/index.ts', import.meta.url))],
    bundle: true,
    format: 'esm',
    target: 'es2022',
    write: false,
    banner: { js: '// @wirepost/client, written by `make playground` from clients/typescript/src. Do not edit.' },
    absWorkingDir: fileURLToPath(new URL('.', import.meta.url)),
  });
  return outputFiles[0].text;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) writeFileSync(file, await bundle());
