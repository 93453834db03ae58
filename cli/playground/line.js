// The network of one client: its sockets can be cut and kept apart, and everything that passes is seen.

const CUT = { code: 1006 };

export class Line {
  cut = false;
  #sockets = new Set();
  #forged = false;

  /** `see(direction, frame)`: 'in' and 'out' with a text, 'open', and 'close' with a code. */
  constructor(see) {
    const line = this;
    this.see = see;
    // For the client's option `WebSocket`.
    this.Socket = function (url, protocol) {
      return line.cut ? line.#dead() : line.#open(url, protocol);
    };
  }

  #open(url, protocol) {
    if (this.#forged) {
      this.#forged = false;
      url = url.replace(/cursor=[^&]*/, 'cursor=lost');
    }
    const socket = new WebSocket(url, protocol);
    const send = socket.send.bind(socket);
    socket.send = (text) => {
      this.see('out', text);
      send(text);
    };
    socket.addEventListener('open', () => this.see('open'));
    socket.addEventListener('message', ({ data }) => this.see('in', data));
    socket.addEventListener('close', ({ code }) => {
      if (this.#sockets.delete(socket)) this.see('close', code);
    });
    this.#sockets.add(socket);
    return socket;
  }

  /** A socket into a dead network. */
  #dead() {
    const socket = { bufferedAmount: 0, send() {}, close() {} };
    socket.timer = setTimeout(() => this.#end(socket), 1000);
    this.#sockets.add(socket);
    return socket;
  }

  #end(socket) {
    clearTimeout(socket.timer);
    if (!this.#sockets.delete(socket)) return;
    const { onclose } = socket;
    socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
    socket.close();
    onclose?.call(socket, CUT);
  }

  /** The client learns that its connection is lost, and gets none until `mend`. */
  sever() {
    this.cut = true;
    for (const socket of [...this.#sockets]) this.#end(socket);
  }

  /** `forged`: the next connection presents a position that the stream never had. */
  mend(forged = false) {
    this.cut = false;
    this.#forged = forged;
    for (const socket of [...this.#sockets]) if (!(socket instanceof WebSocket)) this.#end(socket);
  }
}
