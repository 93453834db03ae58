// The playground of `wirepost dev` (WIREPOST names the program) in a real Chromium, as a newcomer uses it.
// PICTURES=folder: writes how it looks.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { openBrowser } from '../drivers/cdp.mjs';

const EXAMPLE = fileURLToPath(new URL('../../../../examples/payments.yaml', import.meta.url));

/** `wirepost dev` on free ports; resolves with the address of its playground. */
async function start(t) {
  const folder = mkdtempSync(join(tmpdir(), 'wirepost-playground-'));
  copyFileSync(EXAMPLE, join(folder, 'payments.yaml'));
  const dev = spawn(process.env.WIREPOST, ['dev', '--listen', '127.0.0.1:0', '--admin', '127.0.0.1:0', folder]);
  t.after(() => {
    dev.kill();
    rmSync(folder, { recursive: true, force: true });
  });
  return new Promise((resolve, reject) => {
    let printed = '';
    const read = (text) => {
      printed += text;
      const url = /playground: (\S+)/.exec(printed)?.[1];
      if (url && printed.includes('  queues ')) resolve(url);
    };
    dev.stdout.setEncoding('utf8').on('data', read);
    dev.stderr.setEncoding('utf8').on('data', read);
    dev.on('error', reject);
    dev.on('exit', () => reject(new Error(`wirepost dev ended: ${printed}`)));
  });
}

test('the playground shows a newcomer what wirepost does', { timeout: 120_000 }, async (t) => {
  const url = await start(t);
  const page = await openBrowser();
  t.after(page.close);
  await page.send('Page.addScriptToEvaluateOnNewDocument', {
    source: "window.violations = []; addEventListener('securitypolicyviolation', (event) => violations.push(`${event.violatedDirective} ${event.blockedURI}`));",
  });
  await page.size(1280, 900);
  await page.open(url);

  // --- the page, driven like a person

  const ready = () => document.querySelector('#connect button') && !document.querySelector('#connect').hidden;
  await page.until('the page is there', ready);
  const card = (name) => `article[aria-label^="Client ${name},"]`;
  const pill = (name) => page.until(`${name} is connected`, (card) => document.querySelector(`${card} .pill`)?.textContent === 'connected', card(name));
  const click = (within, text) =>
    page.until(`a button ${text}`, (within, text) => {
      const found = [...document.querySelectorAll(`${within} button`)].find((button) => button.textContent === text);
      found?.click();
      return Boolean(found);
    }, within, text);
  const fill = (within, label, value) =>
    page.until(`a field ${label}`, (within, label, value) => {
      const named = [...document.querySelectorAll(`${within} label`)].find((one) => one.textContent.startsWith(label));
      const control = named && document.getElementById(named.htmlFor);
      if (!control) return false;
      control.value = control.localName === 'select' ? ([...control.options].find((option) => option.text === value)?.value ?? value) : value;
      control.dispatchEvent(new Event('change'));
      return true;
    }, within, label, value);
  const shows = (within, ...parts) =>
    page.until(`${parts.join(' … ')} in ${within}`, (within, parts) => [...document.querySelectorAll(within)].some((one) => parts.every((part) => one.textContent.includes(part))), within, parts);
  const write = async (name) => {
    if (!process.env.PICTURES) return;
    await page.run(() => Promise.all(document.getAnimations().map(({ finished }) => finished)).then(() => true));
    writeFileSync(join(process.env.PICTURES, `${name}.png`), await page.picture(name.includes('whole')));
  };

  // With the keyboard alone: connect two clients, and send from the first.
  const focused = () => {
    const { activeElement: at } = document;
    return at.name || (at.localName === 'summary' ? 'summary' : at.textContent) || at.localName;
  };
  const tabTo = async (name) => {
    for (let n = 0; n < 25; n++) {
      await page.press('Tab');
      if ((await page.run(focused)) === name) return;
    }
    assert.fail(`no ${name} by the Tab key`);
  };
  await write('empty-light');
  await tabTo('identity');
  await page.press('Enter');
  await pill('alice');
  assert.equal(await page.run(focused), 'identity', 'the next client can be connected at once');
  await page.press('Enter');
  await pill('bob');
  await tabTo('Send');
  await page.press('Enter');
  await shows(`${card('alice')} .result.good`, 'Acknowledged');
  await shows('#feed .queue', 'qr.refresh', 'from alice');
  await shows('#feed .quiet', 'connected', 'bob');

  // What the schema does not accept is refused, and explained.
  await fill(card('alice'), 'qrId', '');
  await click(card('alice'), 'Send');
  await shows(`${card('alice')} .result.bad`, 'schema_mismatch', 'qrId', 'your service never sees it');

  await fill(card('alice'), 'qrId', 'q-2');
  await click(card('alice'), 'Send');
  await shows(`${card('alice')} .result.good`, 'Acknowledged');

  // A push, and what it is in code.
  await fill('#push', 'Message', 'payment.completed');
  await fill('#push', 'Identity', 'alice');
  await fill('#push', 'Content', '{"orderId": "o-1", "amount": "12.50"}');
  await click('#push', 'Push');
  await shows('#push .result.good', 'Confirmed');
  await shows(`${card('alice')} .in`, 'payment.completed', 'o-1');
  for (const [language, part] of [['curl', "-H 'X-Api-Key: dev-payments'"], ['TypeScript', 'await fetch('], ['Java', 'wirepost.push(Outgoing.of('], ['Python', 'await app.push("payment.completed"']]) {
    await click('#code', language);
    await shows('#code pre', part, 'o-1');
  }

  // A client writes to another one.
  await click(card('bob'), 'Send');
  await shows(`${card('alice')} .in`, 'cart.share', 'from bob');

  // Cut, push, reconnect: nothing is missed.
  await click(card('alice'), 'Cut the line');
  await fill('#push', 'Content', '{"orderId": "o-2", "amount": "7.00"}');
  await click('#push', 'Push');
  await shows('#push .result.good', 'Confirmed');
  assert.ok(!(await page.run((card) => document.querySelector(card).textContent.includes('o-2'), card('alice'))));
  await write('cut-light');
  await click(card('alice'), 'Reconnect');
  await shows(`${card('alice')} .in`, 'o-2');
  await shows(`${card('alice')} .position`, 'continues exactly where it was');
  await shows('.steps li.done', 'nothing is missed');
  assert.equal(await page.run((card) => document.querySelectorAll(`${card} .in`).length, card('alice')), 3, 'each once');
  await click('#code', 'TypeScript');
  await page.size(1280, 1060);
  await write('playground');
  await page.size(1280, 900);
  await write('whole-light');
  await page.scheme('dark');
  await write('whole-dark');
  await page.scheme('light');

  // A position that the stream never had is a gap.
  await click(card('alice'), 'Cut the line');
  await click(card('alice'), 'Reconnect, position lost');
  await shows(`${card('alice')} .log .bad`, 'Messages may be missing');

  // A drain: the client moves without being away.
  await click(card('bob'), 'Drain');
  await shows(`${card('bob')} .log`, 'asks it to move', 'Resumed');
  await pill('bob');

  // A service that rejects.
  await fill('#feed', 'Messages', 'wait for me');
  await page.until('messages wait', () => document.querySelector('#feed select[data-now="decide"]'));
  await fill(card('alice'), 'qrId', 'q-9');
  await click(card('alice'), 'Send');
  await click('#feed', 'Fail');
  await click('#feed', 'Reject');
  await shows('#feed .bad', 'dead', 'q-9');

  // A foreign origin is refused, and explained.
  await fill('#origins', 'Try an origin', 'https://evil.example');
  await click('#origins', 'Try');
  await shows('#origins .result.bad', 'evil.example is not in auth.allowedOrigins', '3003');

  // Narrow: nothing is beyond the edge of the screen.
  await page.run(() => document.querySelectorAll('details').forEach((one) => (one.open = true)));
  for (const width of [360, 320]) {
    await page.size(width, 800, true);
    const widths = await page.run(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.ok(widths[0] <= width && widths[1] <= width, `${widths} at ${width}`);
  }
  await write('whole-narrow');

  assert.deepEqual(await page.run(() => window.violations), []);
  assert.deepEqual(page.problems, []);
});
