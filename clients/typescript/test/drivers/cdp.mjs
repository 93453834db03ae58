// A headless Chromium that a test commands by the DevTools protocol: for pages whose policy lets no test into them.
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Opens a page, in a Chromium with further flags. `close()` ends the browser. */
export async function openBrowser(...flags) {
  const profile = mkdtempSync(join(tmpdir(), 'wirepost-chromium-'));
  const chromium = spawn(process.env.CHROMIUM || '/usr/bin/chromium', [
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--hide-scrollbars',
    '--remote-debugging-pipe', `--user-data-dir=${profile}`, ...flags, 'about:blank',
  ], { stdio: ['ignore', 'ignore', process.env.CHROMIUM_LOG ? 'inherit' : 'ignore', 'pipe', 'pipe'] });
  const [, , , commands, answers] = chromium.stdio;
  const waiting = new Map();
  const problems = [];
  const responses = [];
  let next = 0;
  let session;
  const fail = (error) => {
    for (const { reject } of waiting.values()) reject(error);
    waiting.clear();
  };
  chromium.on('error', (error) => fail(new Error(`Chromium can't be started: ${error}`)));
  chromium.on('exit', (code) => fail(new Error(`Chromium ended with ${code}`)));
  commands.on('error', () => {});
  let rest = '';
  answers.setEncoding('utf8').on('data', (text) => {
    const messages = (rest + text).split('\0');
    rest = messages.pop();
    for (const { id, method, params, result, error } of messages.map((message) => JSON.parse(message))) {
      if (method === 'Runtime.exceptionThrown') problems.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
      if (method === 'Log.entryAdded' && params.entry.level === 'error') problems.push(`${params.entry.text} ${params.entry.url ?? ''}`);
      if (method === 'Network.responseReceived') responses.push(params.response);
      const call = waiting.get(id);
      waiting.delete(id);
      if (error) call?.reject(new Error(error.message));
      else call?.resolve(result);
    }
  });
  const send = (method, params = {}) =>
    new Promise((resolve, reject) => {
      const id = next++;
      waiting.set(id, { resolve, reject });
      commands.write(`${JSON.stringify({ id, method, params, ...(session && { sessionId: session }) })}\0`);
    });
  const { targetInfos } = await send('Target.getTargets');
  const { targetId } = targetInfos.find(({ type }) => type === 'page');
  ({ sessionId: session } = await send('Target.attachToTarget', { targetId, flatten: true }));
  for (const domain of ['Page', 'Runtime', 'Log']) await send(`${domain}.enable`);

  const page = {
    send,
    /** Errors of the page: exceptions, and what its policy forbade. */
    problems,
    /** What it got by HTTP, once the test has sent `Network.enable`. */
    responses,
    open: (url) => send('Page.navigate', { url }),
    /** Runs a function in the page, with arguments that JSON can carry. */
    async run(code, ...args) {
      const expression = `(${code})(...${JSON.stringify(args)})`;
      const { result, exceptionDetails } = await send('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true });
      if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
      return result.value;
    },
    /** Waits until a function in the page returns something, and returns it. */
    async until(what, code, ...args) {
      for (let n = 0; n < 1500; n++) {
        const value = await page.run(code, ...args);
        if (value) return value;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
      throw new Error(`not within 30 s: ${what}\n${await page.run(() => document.body.innerText)}\n${problems.join('\n')}`);
    },
    /** Presses a key: 'Tab', 'Enter', 'ArrowRight'. */
    async press(key) {
      const code = { Tab: 9, Enter: 13, ArrowRight: 39, ArrowLeft: 37 }[key];
      const of = { key, code: key, windowsVirtualKeyCode: code, ...(key === 'Enter' && { text: '\r' }) };
      await send('Input.dispatchKeyEvent', { type: 'keyDown', ...of });
      await send('Input.dispatchKeyEvent', { type: 'keyUp', ...of });
    },
    type: (text) => send('Input.insertText', { text }),
    size: (width, height, mobile = false) => send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile }),
    scheme: (value) => send('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value }] }),
    /** A PNG. */
    async picture(whole = false) {
      const { data } = await send('Page.captureScreenshot', { format: 'png', captureBeyondViewport: whole });
      return Buffer.from(data, 'base64');
    },
    close: () =>
      new Promise((resolve) => {
        const done = () => {
          try {
            rmSync(profile, { recursive: true, force: true, maxRetries: 10, retryDelay: 50 });
          } catch (error) {
            process.stderr.write(`${profile} stays: ${error}\n`);
          }
          resolve();
        };
        if (chromium.exitCode !== null || chromium.signalCode !== null) return done();
        chromium.once('exit', done);
        chromium.kill('SIGKILL');
      }),
  };
  return page;
}
