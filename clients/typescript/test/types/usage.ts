// Each @ts-expect-error is a mistake that the compiler must find; one that it does not find is an error.
import { Wirepost, WirepostError, fetchToken } from '../../dist/index.js';
import { SharedWirepost } from '../../dist/tabs.js';
import type { PaymentsApp, PaymentsH5 } from './payments.js';

const options = { token: (signal: AbortSignal) => fetchToken('/token', { signal }) };
const page = new Wirepost<PaymentsH5>(options);
const app = new SharedWirepost<PaymentsApp>({ ...options, name: 'alice' });

page.send('qr.refresh', { qrId: 'q-1' }) satisfies Promise<string>;
// @ts-expect-error a name that no route has
page.send('qr.refrsh', { qrId: 'q-1' });
// @ts-expect-error a content that the schema refuses
page.send('qr.refresh', { qrId: 1 });
// @ts-expect-error what the schema requires
page.send('qr.refresh', {});
// @ts-expect-error a route of another client type
page.send('cart.share', { cartId: 'c-7' });
app.send('cart.share', { cartId: 'c-7' }, { to: 'bob' });
// @ts-expect-error a route of another client type
app.send('qr.refresh', { qrId: 'q-1' });

page.on('payment.completed', ({ content, messageType }) => {
  messageType satisfies 'payment.completed';
  content satisfies unknown;
});
page.on('cart.*', ({ messageType }) => messageType satisfies string);
page.on('#', () => {});
// @ts-expect-error a name that no route has
page.on('payment.complete', () => {});

const free = new Wirepost(options);
free.send('anything.goes', [1, 2], { signal: AbortSignal.timeout(1000), tags: ['vip'] });
free.on('anything.else', ({ content }) => content.whatever);

try {
  await page.request('qr.refresh', { qrId: 'q-1' }, { timeoutMs: 5000 });
} catch (error) {
  if (error instanceof WirepostError) error.mayHaveArrived satisfies boolean;
}
