// What `wirepost describe` writes is read by AsyncAPI's own parser without a complaint: for all examples, and for declarations with every
// feature. What is broken is found.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { Parser } from '@asyncapi/parser';

const folder = (path) => fileURLToPath(new URL(path, import.meta.url));
const files = ['declarations/', '../../examples/', '../../examples/pay-by-qr/'].flatMap((path) =>
  readdirSync(folder(path)).filter((name) => name.endsWith('.yaml')).map((name) => folder(path) + name));
const describe = (...options) => execFileSync(process.env.WIREPOST ?? 'wirepost', ['describe', ...options], { encoding: 'utf8' });

// That a newer version of AsyncAPI exists is no complaint.
async function complaints(text) {
  const { diagnostics, document } = await new Parser().parse(text);
  const found = diagnostics.filter(({ code }) => code !== 'asyncapi-latest-version');
  return { document, found: found.map(({ code, path, message }) => `${code} at ${path.join('.')}: ${message}`) };
}

test('declarations are there', () => assert.ok(files.length >= 7, files.join()));

for (const file of files) {
  for (const readers of ['all', 'clients']) {
    test(`${file.split('/').pop()} for ${readers}`, async () => {
      const { document, found } = await complaints(describe(file, '--for', readers));
      assert.deepEqual(found, []);
      assert.ok(document.channels().all().length >= 2);
      const unnamed = document.operations().all().filter((operation) => operation.messages().all().length === 0);
      assert.deepEqual(unnamed.map((operation) => operation.id()), []);
    });
  }
}

test('what services do is found by a program', async () => {
  const { document } = await complaints(describe(folder('../../examples/payments.yaml')));
  const push = document.channels().get('push').bindings().get('amqp').value();
  assert.deepEqual(push.exchange, { name: 'wirepost.payments.push', type: 'fanout', durable: true, autoDelete: false });
  const queue = document.channels().get('queue.qr-refresh').bindings().get('amqp').value();
  assert.equal(queue.queue.name, 'wirepost.payments.q.qr-refresh');
  const call = document.operations().get('push.http');
  assert.equal(call.bindings().get('http').value().method, 'POST');
  assert.deepEqual(document.securitySchemes().all().map((scheme) => scheme.id()).sort(), ['apiKey', 'apiKeyBearer', 'brokerUser', 'ticket']);
});

const breaks = {
  'a message that is not there': (document) => { document.operations['push.amqp'].messages = [{ $ref: '#/channels/push/messages/none' }]; },
  'a binding that no AMQP broker has': (document) => { document.channels.push.bindings.amqp.exchange.type = 'fan'; },
  'a schema that is none': (document) => { document.components.messages['control.ack'].payload.properties.id.type = 'text'; },
  'a title that is missing': (document) => { delete document.info.title; },
  'a parameter that is not described': (document) => { document.channels.replay.parameters = { other: {} }; },
};
for (const [what, change] of Object.entries(breaks)) {
  test(`the parser finds ${what}`, async () => {
    const document = JSON.parse(describe(folder('../../examples/payments.yaml')));
    change(document);
    assert.notDeepEqual((await complaints(JSON.stringify(document))).found, []);
  });
}
