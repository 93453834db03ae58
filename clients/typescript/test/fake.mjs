// A WebSocket whose other side is the test.
export function fakeSockets() {
  const sockets = [];
  class FakeSocket {
    bufferedAmount = 0;
    sent = [];
    closed = undefined;

    constructor(url, protocols) {
      Object.assign(this, { url, protocols });
      sockets.push(this);
    }

    send(text) {
      this.sent.push(JSON.parse(text));
    }

    close(code) {
      this.closed = code ?? 1005;
    }

    say(frame) {
      this.onmessage?.({ data: JSON.stringify(frame) });
    }

    welcome(fields = {}) {
      this.onopen?.({});
      this.say({ op: 'welcome', connectionId: 'c', cursor: 'c0', resumed: false, resumeToken: 'resume', limits, ...fields });
    }

    end(code) {
      this.onclose?.({ code });
    }

    ack() {
      for (const { id, op } of this.sent.splice(0)) if (!op) this.say({ op: 'ack', id });
    }
  }
  return { FakeSocket, sockets };
}

const limits = { messageBytes: 1000, messagesPerSecond: 10_000, burst: 10_000 };

export async function until(condition) {
  for (let n = 0; n < 500; n++) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`not within 5 s: ${condition}`);
}
