// A connected client: the library's `Wirepost` on a line that can be cut, with what it sends, gets, and knows.
import { Wirepost, WirepostError, fetchToken } from './client.js';
import { call } from './api.js';
import { $, brief, button, entry, field, h, prepend, pretty, select } from './dom.js';
import { closed, greeting, refusal } from './explain.js';
import { contentEditor } from './forms.js';
import { Line } from './line.js';
import * as snippets from './snippets.js';

/** Lines that a client's log keeps. */
const KEPT = 50;
const STATES = {
  open: 'connected',
  connecting: 'connecting…',
  waiting: 'waiting to reconnect',
  stopped: 'replaced by a newer connection',
  closed: 'closed',
};

export class ClientCard {
  #hooks;
  #business;
  #client;
  #line = new Line((what, detail) => this.#seen(what, detail));
  #connectionId;
  #greeted = false;
  #pill = h('span', { class: 'pill', role: 'status' });
  #position = h('code', {}, '–');
  #greeting = h('span', {}, 'Not connected yet.');
  #log = h('ol', { class: 'log' });
  #sendForm = h('form', { class: 'send', autocomplete: 'off' });
  #cutButtons = h('div', { class: 'row buttons' });

  /** `hooks`: `show` a snippet, `did` a step, `peers` for other identities, `removed`. */
  constructor(business, { identity, clientType, tags }, hooks) {
    Object.assign(this, { identity, clientType, tags });
    this.#hooks = hooks;
    this.#business = business;
    this.#client = new Wirepost({
      token: (signal) =>
        fetchToken(`/playground/api/token?${new URLSearchParams({ business: business.name, uniqueId: identity, clientType, tags })}`, {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          signal,
        }),
      WebSocket: this.#line.Socket,
      onError: (error) => this.#note('bad', 'error', String(error.message ?? error)),
    });
    this.#client.onState(() => this.#showState());
    this.#client.onGap(({ reason }) => this.#note('bad', 'gap', `Messages may be missing (${reason}): an app fetches its state again now.`));
    this.#client.on('#', (message) => this.#arrived(message));
    const name = `${identity}, ${clientType}`;
    this.#log.setAttribute('aria-label', `Messages of ${name}`);
    this.element = h('article', { class: 'card', 'aria-label': `Client ${name}` },
      h('header', {}, h('h3', {}, identity, ' ', h('small', {}, [clientType, tags && `tags ${tags}`].filter(Boolean).join(' · '))), this.#pill),
      this.#cutButtons,
      h('p', { class: 'position' }, this.#greeting, ' Position ', this.#position),
      this.#sendForm,
      this.#log,
    );
    this.#showState();
    this.#showSendForm();
  }

  /** The declaration has changed. */
  update(business) {
    this.#business = business;
    this.#showSendForm();
  }

  close() {
    this.#client.close();
    this.element.remove();
  }

  #note(kind, mark, title, more) {
    prepend(this.#log, entry({ kind, mark, title, more }), KEPT);
  }

  #arrived(message) {
    const from = message.fromUniqueId ? `from ${message.fromUniqueId}` : '';
    const text = [from, brief(message.content)].filter(Boolean).join(' ');
    const onopen = () => this.#hooks.show(snippets.connect(this.#business, this, message.messageType));
    prepend(this.#log, entry({ kind: 'in', mark: 'got', title: message.messageType, text, more: pretty(message), onopen }), KEPT);
    this.#hooks.did('arrived');
  }

  #seen(what, detail) {
    if (what === 'close') return this.#note('quiet', 'line', `Connection closed: ${closed(detail)}.`);
    if (what !== 'in') return;
    const frame = JSON.parse(detail);
    if (frame.cursor) this.#showPosition(frame.cursor);
    if (frame.op === 'welcome') {
      this.#connectionId = frame.connectionId;
      this.#greeting.textContent = greeting(frame, this.#greeted);
      if (!frame.cursor) this.#showPosition('');
      this.#note('quiet', 'line', greeting(frame, this.#greeted), pretty(detail));
      this.#greeted = true;
      if (frame.resumed && this.wasCut) this.#hooks.did('cut');
      this.wasCut = false;
    } else if (frame.op === 'drain') {
      this.#note('quiet', 'line', 'This edge asks it to move. The library connects again first, then leaves the old connection.', pretty(detail));
    }
  }

  #showPosition(cursor) {
    this.#position.textContent = cursor ? `…${cursor.slice(8, 24)}` : '–';
    this.#position.title = cursor;
  }

  #showState() {
    const { state } = this.#client;
    const { cut } = this.#line;
    this.#pill.textContent = cut ? 'line is cut' : STATES[state];
    this.#pill.className = `pill ${cut ? 'cut' : state}`;
    if (state === 'open') this.#hooks.did('connect');
    // Only when they change: a rebuilt button loses the focus.
    const mode = cut ? 'cut' : state === 'stopped' ? 'stopped' : 'up';
    if (this.#cutButtons.dataset.mode === mode) return;
    this.#cutButtons.dataset.mode = mode;
    const had = this.#cutButtons.contains(document.activeElement);
    const remove = button('Remove', () => this.#hooks.removed(this), { class: 'plain' });
    const lost = this.#business.delivery === 'Durable' && button('Reconnect, position lost', () => this.#mend(true), { class: 'plain' });
    const buttons = {
      cut: [button('Reconnect', () => this.#mend(false), { class: 'main' }), lost],
      stopped: [button('Take it back', () => this.#client.connect())],
      up: [button('Cut the line', () => this.#sever()), button('Drain', () => this.#drain(), { title: 'The edge asks this client to move, as before a restart' })],
    };
    this.#cutButtons.replaceChildren(...[...buttons[mode], remove].filter(Boolean));
    if (had) this.#cutButtons.firstChild.focus();
  }

  #sever() {
    this.wasCut = true;
    this.#line.sever();
    this.#note('quiet', 'line', 'You cut the line. Push to this client now: it gets the message when it returns.');
    this.#showState();
  }

  #mend(forged) {
    this.#line.mend(forged);
    this.#client.connect();
    this.#showState();
  }

  async #drain() {
    const { result, description } = await call('drain', { business: this.#business.name, connection: this.#connectionId ?? '' });
    if (result !== 0) this.#note('bad', 'drain', description);
  }

  #showSendForm() {
    const routes = this.#business.routes.filter(({ sendType, from }) => sendType !== 'ServerToClient' && from.includes(this.clientType));
    const choice = select([...routes.map(({ messageType }, at) => [String(at), messageType]), ['', 'another type…']]);
    const parts = h('div', {});
    const result = h('p', { class: 'result', role: 'status' });
    let read;
    const showRoute = () => {
      const route = routes[choice.value];
      const exact = route && !/[*#]/.test(route.messageType);
      const type = h('input', { value: route?.exampleType ?? 'not.declared', type: 'text' });
      const to = h('input', { type: 'text', list: 'identities', value: this.#hooks.peers(this)[0] ?? 'bob' });
      const toClient = route?.sendType === 'ClientToClient';
      const content = contentEditor(route?.schema, route?.content);
      const where = !route ? 'No route declares it for this client type: the edge refuses it.' : toClient ? `To another client: ${route.to.join(', ')}.` : `To the service: ${route.queue}.`;
      parts.replaceChildren(h('p', { class: 'quiet' }, where), ...[!exact && field('Message type', type), toClient && field('To (identity)', to), content.element].filter(Boolean));
      read = () => ({ messageType: exact ? route.messageType : type.value, to: toClient ? to.value : undefined, content: content.read() });
    };
    choice.onchange = showRoute;
    showRoute();
    this.#sendForm.onsubmit = (event) => {
      event.preventDefault();
      try {
        this.#send(read(), result);
      } catch (error) {
        result.className = 'result bad';
        result.textContent = error.message;
      }
    };
    const summary = h('summary', {}, 'Send a message');
    const before = this.#sendForm.querySelector('details');
    this.#sendForm.replaceChildren(h('details', { open: before ? before.open : true }, summary, field('Message', choice), parts, h('div', { class: 'row' }, h('button', { class: 'main' }, 'Send')), result));
  }

  async #send({ messageType, to, content }, result) {
    const id = crypto.randomUUID();
    this.#hooks.show(snippets.send(this.#business, this, { messageType, to, content }));
    const say = (kind, title, text) => {
      result.className = `result ${kind}`;
      result.textContent = `${title} ${text}`;
    };
    const line = entry({ kind: 'out', mark: 'sent', title: messageType, text: brief(content), more: pretty({ id, messageType, toUniqueId: to, content }) });
    prepend(this.#log, line, KEPT);
    const note = h('p', { class: 'quiet' }, 'Waits for its acknowledgement.');
    line.append(note);
    say('', 'On its way:', this.#client.state === 'open' ? 'waits for its acknowledgement.' : 'there is no connection; it is sent when there is one.');
    try {
      await this.#client.send(messageType, content, { to, id });
      say('good', 'Acknowledged:', to ? 'it is in the stream, so the other client gets it.' : 'it is in the queue of the service.');
      note.textContent = 'Acknowledged.';
      this.#hooks.did('send');
    } catch (error) {
      const code = error instanceof WirepostError ? error.code : 'error';
      const text = `${error.message.replace(`${code}: `, '')}. ${refusal(code)}`;
      say('bad', `Refused, ${code}:`, text);
      line.classList.add('bad');
      note.textContent = `Refused, ${code}.`;
    }
  }
}

/** The form that connects a client. */
export function connectForm(form, business, names, connect) {
  const identity = h('input', { type: 'text', name: 'identity', required: true, maxlength: 256 });
  const clientType = select(business.clientTypes, { name: 'clientType' });
  const tags = h('input', { type: 'text', name: 'tags', placeholder: 'none' });
  const next = () => {
    identity.value = names();
  };
  next();
  form.onsubmit = (event) => {
    event.preventDefault();
    connect({ identity: identity.value.trim(), clientType: clientType.value, tags: tags.value.trim() });
    // The next client is another one, of another type where there is one.
    const types = business.clientTypes;
    clientType.value = types[(types.indexOf(clientType.value) + 1) % types.length];
    next();
  };
  form.replaceChildren(field('Identity', identity), field('Client type', clientType), field('Tags, with commas', tags), h('button', { class: 'main' }, 'Connect'));
}

/** Other inputs suggest the connected identities. */
export function suggest(identities) {
  const list = $('identities') ?? document.body.appendChild(h('datalist', { id: 'identities' }));
  list.replaceChildren(...[...new Set(identities)].map((value) => h('option', { value })));
}
