// A list that is never old: loaded at the start and after each gap, changed by messages in between.
import { useState } from 'react';
import { Wirepost, fetchToken } from '@wirepost/client';
import { useWirepostMessage, useWirepostReload, useWirepostState } from '@wirepost/client/react';

const client = new Wirepost({ token: (signal) => fetchToken('/api/wirepost-token', { signal }) });

export function Orders() {
  const [orders, setOrders] = useState([]);
  const state = useWirepostState(client);
  useWirepostReload(client, async () => {
    const response = await fetch('/api/orders');
    setOrders(await response.json());
  });
  useWirepostMessage(client, 'payment.completed', ({ content }) => {
    setOrders((all) => all.map((order) => (order.id === content.orderId ? { ...order, paid: true } : order)));
  });
  return (
    <>
      {state === 'open' || <p role="status">Connecting …</p>}
      <ul>
        {orders.map(({ id, paid }) => (
          <li key={id}>
            {id}: {paid ? 'paid' : <button onClick={() => client.send('qr.refresh', { qrId: id })}>new code</button>}
          </li>
        ))}
      </ul>
    </>
  );
}
