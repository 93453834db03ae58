// The business's service: it pushes, and gets what clients send.
import { call } from './api.js';
import { brief, button, entry, field, h, prepend, pretty, select } from './dom.js';
import * as explain from './explain.js';
import { contentEditor } from './forms.js';
import * as snippets from './snippets.js';

/** Lines that the feed keeps. */
const KEPT = 100;

/** The form that pushes. `hooks`: `show` a snippet, `did` a step, `peers` for connected identities. */
export function pushForm(form, business, hooks) {
  const routes = business.routes.filter(({ sendType }) => sendType === 'ServerToClient');
  const title = h('h3', {}, 'Push to clients');
  form.onsubmit = (event) => event.preventDefault();
  if (!routes.length) {
    form.replaceChildren(title, h('p', { class: 'quiet' }, 'This business declares no push: its declaration has no route ServerToClient.'));
    return;
  }
  const choice = select(routes.map(({ messageType }, at) => [String(at), messageType]));
  const parts = h('div', {});
  const result = h('p', { class: 'result', role: 'status' });
  let read;
  const showRoute = () => {
    const route = routes[choice.value];
    const exact = !/[*#]/.test(route.messageType);
    const type = h('input', { type: 'text', value: route.exampleType });
    const audience = select([['one', 'one identity'], ['tags', 'clients with a tag'], ...(route.everyone ? [['everyone', 'everyone']] : [])]);
    const to = h('input', { type: 'text', list: 'identities', value: hooks.peers()[0] ?? 'alice' });
    const tags = h('input', { type: 'text', placeholder: 'vip, eu' });
    const only = select([['', `all of ${route.to.join(', ')}`], ...route.to]);
    const content = contentEditor(route.schema, route.content);
    const who = h('div', {});
    const showWho = () => who.replaceChildren(...{ one: [field('Identity', to)], tags: [field('Tags, with commas', tags)], everyone: [] }[audience.value]);
    audience.onchange = showWho;
    showWho();
    const pairs = h('div', { class: 'pairs' }, !exact && field('Message type', type), field('For', audience), who, route.to.length > 1 && field('Client types', only));
    parts.replaceChildren(pairs, content.element);
    read = () => {
      const message = { messageType: exact ? route.messageType : type.value };
      if (audience.value === 'one') message.toUniqueId = to.value;
      if (audience.value === 'everyone') message.toUniqueId = '*';
      if (audience.value === 'tags') message.tags = tags.value.split(',').map((tag) => tag.trim()).filter(Boolean);
      if (only.value) message.toClientType = only.value;
      return { ...message, content: content.read() };
    };
  };
  choice.onchange = showRoute;
  showRoute();
  form.onsubmit = async (event) => {
    event.preventDefault();
    const say = (kind, text) => {
      result.className = `result ${kind}`;
      result.textContent = text;
    };
    let message;
    try {
      message = read();
    } catch (error) {
      return say('bad', error.message);
    }
    hooks.show(snippets.push(business, message));
    say('', 'On its way…');
    const answer = await call('push', { business: business.name }, JSON.stringify(message));
    if (answer.result !== 0) return say('bad', `Refused, ${answer.result}: ${answer.data?.description ?? answer.description}`);
    say('good', 'Confirmed: the broker has it. Every addressed client gets it, also one that returns later.');
    hooks.did('push');
  };
  form.replaceChildren(title, field('Message', choice), parts, h('div', { class: 'row' }, h('button', { class: 'main' }, 'Push')), result);
}

const VERDICTS = {
  ack: ['Acknowledge', 'Acknowledged: it is gone from the queue.'],
  requeue: ['Fail', 'The service failed: the broker delivers it again. After deliveryLimit failures it goes to the dead letters.'],
  reject: ['Reject', 'Rejected: it goes to the dead letters.'],
};
const SHOWN = { message: 'queue', event: 'event', deadLetter: 'dead letter' };

/** What services get, live. */
export class Feed {
  #list = h('ol', { class: 'log', 'aria-label': 'What the service receives', 'aria-live': 'polite' });
  #waiting = new Map();
  #mode = select([['auto', 'are acknowledged'], ['decide', 'wait for me']]);
  #empty = h('p', { class: 'quiet' }, 'Nothing yet.');
  #remark = h('p', { class: 'quiet' });
  #hooks;
  #business;
  #all = [];
  #filter = new Set(Object.keys(SHOWN));

  constructor(place, hooks) {
    this.#hooks = hooks;
    this.#mode.onchange = () => call('deciding', { on: this.#mode.value === 'decide' });
    const filters = Object.entries(SHOWN).map(([kind, name]) => {
      const box = h('input', { type: 'checkbox', checked: true, onchange: () => {
        if (box.checked) this.#filter.add(kind);
        else this.#filter.delete(kind);
        this.#render();
      } });
      return h('label', { class: 'check' }, box, ` ${name}s`);
    });
    place.replaceChildren(
      h('h3', {}, 'What the service receives'),
      field('Messages on its queues', this.#mode),
      this.#remark,
      h('div', { class: 'row', role: 'group', 'aria-label': 'Show' }, filters),
      this.#list,
      this.#empty,
    );
  }

  /** `broker` says what can be shown. */
  update(business, broker) {
    this.#business = business;
    this.#mode.disabled = !broker.showsQueues;
    const hidden = 'Your own services consume the queues of this RabbitMQ, so they are not shown here. To see them, start wirepost dev with --show-queues.';
    const dead = `Dead letters stay in ${business.deadQueue}: wirepost dead list --business ${business.name}`;
    this.#remark.textContent = [!broker.showsQueues && hidden, !broker.local && dead].filter(Boolean).join(' ');
    this.#render();
  }

  take(notice) {
    if (notice.kind === 'hello' || notice.kind === 'deciding') this.#mode.dataset.now = this.#mode.value = notice.deciding ? 'decide' : 'auto';
    if (notice.kind === 'decided') return this.#decided(notice);
    if (notice.kind !== 'missed' && !SHOWN[notice.kind]) return;
    const item = { notice, element: this.#item(notice) };
    this.#all.push(item);
    if (this.#all.length > KEPT) this.#all.shift().element.remove();
    if (this.#shows(notice)) this.#list.prepend(item.element);
    this.#empty.hidden = this.#list.children.length > 0;
  }

  #shows({ kind, business }) {
    return kind === 'missed' || (this.#filter.has(kind) && business === this.#business?.name);
  }

  #render() {
    this.#list.replaceChildren(...this.#all.filter(({ notice }) => this.#shows(notice)).map(({ element }) => element).reverse());
    this.#empty.hidden = this.#list.children.length > 0;
  }

  #item(notice) {
    const { kind, at, body } = notice;
    if (kind === 'missed') return entry({ kind: 'quiet', mark: 'note', title: `${notice.count} more came than this page could show.` });
    const envelope = parsed(body.text);
    const more = pretty(body.text) + (body.cut ? '\n… (it goes on)' : '');
    if (kind === 'event') {
      const about = [envelope.uniqueId, envelope.clientType, envelope.description ?? envelope.reason, envelope.ids && `${envelope.ids.length} ids`].filter(Boolean).join(' · ');
      return entry({ kind: envelope.event === 'rejected' ? 'bad' : 'quiet', mark: 'event', title: envelope.event ?? 'event', text: about, more, at });
    }
    const text = [envelope.fromUniqueId && `from ${envelope.fromUniqueId}`, brief(envelope.content ?? body.text)].filter(Boolean).join(' ');
    const title = envelope.messageType ?? 'not an envelope';
    if (kind === 'deadLetter') return entry({ kind: 'bad', mark: 'dead', title, text, more, at });
    const onopen = () => this.#hooks.show(snippets.receive(this.#business, notice.queue, envelope));
    const element = entry({ kind: 'queue', mark: 'queue', title, text, more: `${notice.queue}${notice.redelivered ? ', delivered again' : ''}\n${more}`, at, onopen });
    if (notice.held) {
      const buttons = h('div', { class: 'row buttons' }, Object.entries(VERDICTS).map(([verdict, [name]]) => button(name, () => this.#give(notice.number, verdict), { 'aria-label': `${name} ${title}` })));
      element.append(buttons);
      this.#waiting.set(notice.number, buttons);
    }
    return element;
  }

  async #give(message, verdict) {
    // At once, so that nobody decides twice.
    this.#decided({ message, verdict });
    await call('verdict', { message, verdict });
  }

  /** Here, or on another page. */
  #decided({ message, verdict }) {
    this.#waiting.get(message)?.replaceWith(h('p', { class: 'quiet' }, VERDICTS[verdict][1]));
    this.#waiting.delete(message);
  }
}

function parsed(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

/** Which pages may connect, with a try. */
export function originsPanel(place, business) {
  const input = h('input', { type: 'url', value: 'https://shop.example.org', spellcheck: 'false' });
  const result = h('div', { role: 'status' });
  const form = h('form', { class: 'row', autocomplete: 'off' }, field('Try an origin', input), h('button', {}, 'Try'));
  form.onsubmit = async (event) => {
    event.preventDefault();
    const answer = explain.origin(input.value, await call('origin', { business: business.name, origin: input.value }));
    result.replaceChildren(...[h('p', { class: `result ${answer.allowed ? 'good' : 'bad'}` }, answer.text), answer.declaration && h('pre', { tabindex: 0 }, answer.declaration)].filter(Boolean));
  };
  const origins = business.allowedOrigins;
  const declared = origins.length ? h('ul', {}, origins.map((origin) => h('li', {}, h('code', {}, origin)))) : h('p', {}, 'None: no browser may connect, only programs.');
  place.replaceChildren(
    h('summary', {}, h('h3', {}, 'Which pages may connect?')),
    h('p', {}, 'A browser tells the edge which page opens a socket. Only pages of these origins are let in (auth.allowedOrigins); wirepost dev adds its own for this playground. Apps and programs send no origin, and need none.'),
    declared,
    form,
    result,
  );
}
