import { now, timer } from './timing.js';
import type { SocketLike, Timing } from './types.js';

/** A `welcome`, as far as it is used. */
export interface Welcome {
  op: 'welcome';
  cursor?: string;
  resumed?: boolean;
  resumeToken: string;
  limits: { messageBytes: number; messagesPerSecond: number; burst: number };
}

/** Who is told what happens on a connection. */
export interface Owner {
  onFrame(connection: Connection, frame: any): void;
  /** 1006 where there is no code, because the network is dead. */
  onEnd(connection: Connection, code: number): void;
}

/** What is to be in the socket's own buffer at most: what waits there delays the ping. */
const BUFFERED = 1 << 20;
/** A timer that fires so late was held up by sleep or a hidden page. */
const HELD_UP = 2_000;

/** One WebSocket, watched for silence. It reports its end once, and nothing after it. */
export class Connection {
  /** When the last frame arrived. */
  heard = now();
  readonly began = now();
  welcome?: Welcome;
  /** A `gap` that follows a `welcome` with `resumed: false` is the same gap. */
  gapReported = false;
  /** It began before the newest position, so that messages come again whose receipts have no answer. */
  again = false;
  /** Receipts that waited for their messages when it began, if it began before those. */
  awaited: string[] = [];
  /** A drain told it to leave. */
  leaving = false;
  /** Ids of messages without an answer. */
  readonly unanswered = new Set<string>();
  /** Frames that arrived. */
  frames = 0;
  #socket: SocketLike | undefined;
  #open = false;
  #pinged = 0;
  #pongWithin: number;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    Socket: new (url: string, protocols: string[]) => SocketLike,
    url: string,
    token: string,
    /** The cursor that it was given. */
    readonly cursor: string | undefined,
    private readonly timing: Timing,
    patience: number,
    private readonly owner: Owner,
  ) {
    this.#pongWithin = timing.pongWithin * patience;
    // Not in the URL, which proxies log.
    const protocols = ['wirepost.v1', `wirepost.token.${token}`];
    const socket = (this.#socket = new Socket(cursor ? `${url}?cursor=${cursor}` : url, protocols));
    socket.onopen = () => {
      this.#open = true;
      this.heard = now();
      this.#watch();
    };
    socket.onmessage = (event) => {
      this.heard = now();
      this.frames++;
      if (this.#pinged) {
        this.#pinged = 0;
        this.#watch();
      }
      let frame;
      try {
        frame = JSON.parse(event.data);
      } catch {
        return;
      }
      if (!frame || typeof frame !== 'object') return;
      if (frame.op === 'welcome') {
        this.welcome = frame;
        this.#watch();
      }
      owner.onFrame(this, frame);
    };
    socket.onclose = (event) => this.#end(event.code || 1006);
    socket.onerror = () => {};
    this.#watch();
  }

  /** Whether it takes more. */
  get roomy(): boolean {
    // React Native's sockets do not say how much waits.
    return !!this.#socket && !(this.#socket.bufferedAmount > BUFFERED);
  }

  send(text: string): void {
    this.#socket?.send(text);
  }

  /** Tests it: it is dead if nothing arrives within `hintPongWithin`. */
  test(silence = 0): void {
    if (this.welcome && now() - this.heard >= silence) this.#ping(this.timing.hintPongWithin);
  }

  /** Leaves it; nothing is reported any more. */
  leave(): void {
    const socket = this.#socket;
    if (!socket) return;
    this.#socket = undefined;
    clearTimeout(this.#timer);
    socket.onopen = socket.onmessage = socket.onclose = null;
    // Kept: Node's `ws` throws errors that nobody handles, such as that of closing while it connects.
    socket.onerror = () => {};
    if (this.#open) socket.close(1000);
    else socket.terminate ? socket.terminate() : socket.close();
  }

  /** Gives it up without waiting for the other side: the network is dead. */
  abandon(): void {
    const socket = this.#socket;
    if (!socket) return;
    this.leave();
    socket.terminate?.();
    this.owner.onEnd(this, 1006);
  }

  #end(code: number): void {
    if (!this.#socket) return;
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket = undefined;
    clearTimeout(this.#timer);
    this.owner.onEnd(this, code);
  }

  #ping(within: number): void {
    this.#pinged = now();
    this.send('{"op":"ping"}');
    this.#watch(within);
  }

  /** Waits for the next time at which silence means something. */
  #watch(pongWithin = this.#pongWithin): void {
    clearTimeout(this.#timer);
    const due = !this.welcome
      ? (this.#open ? this.heard : this.began) + this.timing.connectWithin
      : this.#pinged
        ? this.#pinged + pongWithin
        : this.heard + this.timing.pingAfter;
    this.#timer = timer(Math.max(0, due - now()), () => {
      if (now() - due > HELD_UP && this.#pinged) this.#ping(this.timing.hintPongWithin);
      else if (!this.welcome || this.#pinged) this.abandon();
      else if (now() < this.heard + this.timing.pingAfter) this.#watch();
      else this.#ping(this.#pongWithin);
    });
  }
}
