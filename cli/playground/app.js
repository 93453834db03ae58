// The playground: puts clients, service and code together for one business.
import * as api from './api.js';
import { ClientCard, connectForm, suggest } from './clients.js';
import { $, h } from './dom.js';
import { Feed, originsPanel, pushForm } from './service.js';
import * as snippets from './snippets.js';

const NAMES = ['alice', 'bob', 'carol', 'dave', 'erin', 'frank', 'grace', 'heidi'];
/** Clients at once on this page. */
const MOST = 12;
const STORED = 'wirepost-playground';

let business;
let broker;
const cards = [];
const show = snippets.codePanel($('code'));
const hooks = {
  show,
  did: (step) => document.querySelector(`[data-step="${step}"]`)?.classList.add('done'),
  peers: (except) => cards.filter((card) => card !== except).map(({ identity }) => identity),
  removed: (card) => {
    cards.splice(cards.indexOf(card), 1);
    card.close();
    changed();
    $('clients').focus();
  },
};
const feed = new Feed($('feed'), hooks);

function alert(text) {
  $('alert').hidden = !text;
  $('alert').textContent = text ?? '';
}

function connect(who) {
  if (cards.length === MOST) return alert(`This page holds ${MOST} clients: remove one first.`);
  alert();
  const card = new ClientCard(business, who, hooks);
  cards.push(card);
  $('cards').append(card.element);
  show(snippets.connect(business, who));
  changed();
}

function changed() {
  $('no-clients').hidden = cards.length > 0;
  const identities = cards.map(({ identity }) => identity);
  suggest(identities);
  const clients = cards.map(({ identity, clientType, tags }) => ({ identity, clientType, tags }));
  sessionStorage.setItem(STORED, JSON.stringify({ business: business?.name, clients }));
}

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(STORED)) ?? {};
  } catch {
    return {};
  }
}

const nextName = () => NAMES.find((name) => !cards.some(({ identity }) => identity === name)) ?? `user-${cards.length + 1}`;

/** Shows a business; its clients are connected anew. */
function open(chosen, clients = []) {
  for (const card of cards.splice(0)) card.close();
  business = chosen;
  fill();
  for (const client of clients) if (business.clientTypes.includes(client.clientType)) connect(client);
  changed();
}

/** The forms, from the declaration as it is now. */
function fill() {
  connectForm($('connect'), business, nextName, connect);
  pushForm($('push'), business, hooks);
  originsPanel($('origins'), business);
  feed.update(business, broker);
}

async function load() {
  const state = await api.state();
  broker = state.broker;
  snippets.setEdge(state.edge);
  $('place').textContent = `Edge ${state.edge} · broker: ${broker.description.split(';')[0]}`;
  const names = state.businesses.map(({ name }) => name);
  $('business').replaceChildren(...names.map((name) => h('option', {}, name)));
  $('connect').hidden = $('push').hidden = $('origins').hidden = !names.length;
  if (!names.length) return alert('No business runs yet: correct a declaration or add one. The terminal of wirepost dev says what is wrong.');
  const before = stored();
  const wanted = business?.name ?? before.business;
  const chosen = state.businesses.find(({ name }) => name === wanted) ?? state.businesses[0];
  $('business').value = chosen.name;
  $('business').onchange = () => open(state.businesses.find(({ name }) => name === $('business').value));
  if (chosen.name !== business?.name) return open(chosen, chosen.name === before.business ? before.clients : []);
  // What is being typed is not thrown away for nothing.
  if (JSON.stringify(chosen) === JSON.stringify(business)) return;
  business = chosen;
  fill();
  for (const card of cards) card.update(business);
}

let loading = Promise.resolve();
const reload = () => (loading = loading.then(load).catch((error) => alert(`wirepost dev does not answer: ${error.message}`)));
await reload();
api.notices(
  (notice) => {
    feed.take(notice);
    if (notice.kind === 'businesses') reload();
  },
  (there) => alert(there ? undefined : 'wirepost dev does not answer. It ended, or too many playgrounds are open. This page tries again.'),
);
