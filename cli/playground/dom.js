// Elements without a framework. Texts are set as texts only: nothing that arrives becomes markup.

/** An element. `onclick` and the like are listeners; `value` and `checked` are properties. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  const { value, ...others } = attributes;
  for (const [name, given] of Object.entries(others)) {
    if (given === undefined || given === null || given === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), given);
    else if (name === 'checked') element.checked = given;
    else element.setAttribute(name, given === true ? '' : given);
  }
  element.append(...children.flat(2).filter((child) => child !== undefined && child !== null && child !== false));
  // After its children: a select has its options only then.
  if (value !== undefined && value !== null) element.value = value;
  return element;
}

export const $ = (id) => document.getElementById(id);

let labels = 0;

/** A control below its label, with a hint. */
export function field(label, control, hint) {
  const id = control.id || (control.id = `f${++labels}`);
  const hinted = hint && h('small', { id: `${id}-hint` }, hint);
  if (hinted) control.setAttribute('aria-describedby', hinted.id);
  return h('div', { class: 'field' }, h('label', { for: id }, label), control, hinted);
}

export function select(options, attributes = {}) {
  const entries = options.map((option) => (Array.isArray(option) ? option : [option, option]));
  return h('select', attributes, entries.map(([value, text]) => h('option', { value }, text)));
}

export const button = (text, onclick, attributes = {}) => h('button', { type: 'button', onclick, ...attributes }, text);

/** Adds to the top of a list that keeps at most `limit`. */
export function prepend(list, item, limit) {
  list.prepend(item);
  while (list.children.length > limit) list.lastChild.remove();
}

export const clock = (ms = Date.now()) => new Date(ms).toLocaleTimeString('en-GB');

/** JSON on one line, shortened. */
export function brief(value, limit = 160) {
  const text = typeof value === 'string' ? value : (JSON.stringify(value) ?? '');
  return text.length > limit ? `${text.slice(0, limit)}…` : text;
}

/** JSON on several lines; a text that is no JSON as it is. */
export function pretty(text) {
  try {
    return JSON.stringify(typeof text === 'string' ? JSON.parse(text) : text, null, 2);
  } catch {
    return String(text);
  }
}

/** A line of a log that opens to the whole message. `mark` says what it is in a word. */
export function entry({ kind, mark, title, text, more, at, onopen }) {
  const summary = h('summary', {}, h('span', { class: 'mark' }, mark), h('span', { class: 'what' }, h('b', {}, title), text && h('code', {}, ` ${text}`)), h('time', {}, clock(at)));
  const line = h('details', { ontoggle: () => line.open && onopen?.() }, summary, more && h('pre', { tabindex: 0 }, more));
  return h('li', { class: kind }, line);
}
