// The driver protocol of clients/suite around this client; the same in Node and in a page.

/** `emit` gets events; `platform` has what differs: `WebSocket`, `heapBytes()`. Returns what takes commands. */
export function driver({ Wirepost, fetchToken, memoryStore }, emit, platform) {
  const clients = new Map();
  const realNow = Date.now;

  const connect = ({ client: name, tokenUrl, timing, cursor, queueLimit }) => {
    const store = memoryStore(cursor);
    const one = { store, mode: 'ok', ms: 0, times: 0, aborts: new Map() };
    clients.set(name, one);
    const client = (one.client = new Wirepost({
      token: (signal) => fetchToken(tokenUrl, { signal }),
      store,
      timing,
      ...(queueLimit && { queueLimit }),
      WebSocket: platform.WebSocket,
      onError: (error) => platform.log(`${name}: ${error}`),
    }));
    emit({ event: 'state', client: name, state: client.state });
    client.onState((state) => emit({ event: 'state', client: name, state }));
    client.onGap(() => emit({ event: 'gap', client: name }));
    client.on('#', (message) => {
      emit({ event: 'message', client: name, message });
      if (one.mode === 'delay') return new Promise((resolve) => setTimeout(resolve, one.ms));
      if (one.mode === 'hang') return new Promise(() => {});
      if (one.mode === 'fail' && one.times-- > 0) throw new Error('as commanded');
    });
  };

  const send = async (one, { do: action, client, as, message, timeoutMs }) => {
    const event = { event: action === 'send' ? 'sent' : 'answered', client, as };
    const { messageType, content, toUniqueId: to, tags } = message;
    const abort = new AbortController();
    one.aborts.set(as, abort);
    try {
      const options = { ...(to && { to }), ...(tags && { tags }), signal: abort.signal };
      if (action === 'send') {
        await one.client.send(messageType, content, options);
        emit({ ...event, result: 'ack' });
      } else {
        const answer = await one.client.request(messageType, content, { ...options, timeoutMs });
        emit({ ...event, result: 'answer', message: answer });
      }
    } catch ({ code, retryable, mayHaveArrived, message: reason }) {
      emit({ ...event, result: 'rejected', code, retryable, mayHaveArrived, reason });
    } finally {
      one.aborts.delete(as);
    }
  };

  emit({
    event: 'ready',
    protocol: 1,
    name: platform.name,
    supports: ['timing', 'request', 'abort', 'hints', 'clock', 'stats', 'queue', 'receipts'],
  });
  return (command) => {
    const one = clients.get(command.client);
    switch (command.do) {
      case 'connect':
        return connect(command);
      case 'send':
      case 'request':
        return void send(one, command);
      case 'abort':
        return one.aborts.get(command.as)?.abort();
      case 'handler':
        return void Object.assign(one, { mode: command.mode, ms: command.ms, times: command.times });
      case 'received':
        return one.client.received(...command.ids);
      case 'hint':
        return one.client.hint(command.hint);
      case 'cursor':
        return emit({ event: 'cursor', client: command.client, cursor: one.store.cursor ?? null });
      case 'reconnect':
        return one.client.connect();
      case 'close':
        return one.client.close();
      case 'clock':
        Date.now = () => realNow() + command.aheadMs;
        return;
      case 'stats':
        return emit({ event: 'stats', heapBytes: platform.heapBytes() });
      default:
        return emit({ event: 'unsupported', client: command.client, do: command.do });
    }
  };
}
