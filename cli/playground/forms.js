// A form for the content of a message, made from its JSON Schema; where that is beyond a form, and where the user wants
// it, the content is JSON. Nothing is checked here: what the edge refuses is what there is to learn.
import { button, field, h, select } from './dom.js';

const DEEPEST = 4;

/** `read()` returns the content; it throws if the JSON can't be read. */
export function contentEditor(schema, content) {
  const initial = schema ? (content ?? {}) : { text: 'hello' };
  const form = schema && objectFields(schema, schema, 0);
  const area = h('textarea', { rows: 4, spellcheck: 'false', 'aria-label': 'Content as JSON' });
  const body = h('div', { class: 'content' });
  let asForm = Boolean(form);
  const show = () => body.replaceChildren(asForm ? form.element : field('Content, any JSON', area));
  const toggle = form && button('Edit as JSON', () => {
    if (asForm) area.value = JSON.stringify(form.read(), null, 2);
    else {
      try {
        form.write(JSON.parse(area.value));
      } catch {
        // What was in the form stays.
      }
    }
    asForm = !asForm;
    toggle.textContent = asForm ? 'Edit as JSON' : 'Edit as a form';
    show();
  }, { class: 'plain' });
  form?.write(initial);
  area.value = JSON.stringify(initial, null, 2);
  show();
  return {
    element: h('div', {}, body, toggle),
    read() {
      if (asForm) return form.read();
      try {
        return area.value.trim() ? JSON.parse(area.value) : undefined;
      } catch (error) {
        throw new Error(`The content is not JSON: ${error.message}`);
      }
    },
  };
}

function resolve(root, schema, depth = 0) {
  if (typeof schema?.$ref !== 'string' || depth > DEEPEST) return schema;
  const path = schema.$ref.replace(/^#\/?/, '').split('/').filter(Boolean);
  const target = path.reduce((at, name) => at?.[name.replace(/~1/g, '/').replace(/~0/g, '~')], root);
  return resolve(root, target, depth + 1);
}

/** Fields of an object with named properties; nothing for other schemas. */
function objectFields(root, given, depth) {
  const schema = resolve(root, given);
  const beyond = ['oneOf', 'anyOf', 'allOf', 'if', 'patternProperties'].some((word) => schema?.[word]);
  if (depth > DEEPEST || !schema?.properties || beyond) return undefined;
  const required = new Set(schema.required ?? []);
  const fields = Object.entries(schema.properties).map(([name, of]) => [name, property(root, name, resolve(root, of), required.has(name), depth)]);
  return {
    element: h('div', { class: 'fields' }, fields.map(([, one]) => one.element)),
    read() {
      const values = fields.map(([name, one]) => [name, one.read()]).filter(([, value]) => value !== undefined);
      return Object.fromEntries(values);
    },
    write(values) {
      for (const [name, one] of fields) one.write(values?.[name]);
    },
  };
}

function property(root, name, schema, required, depth) {
  const inner = objectFields(root, schema, depth + 1);
  if (inner) {
    return { ...inner, element: h('fieldset', {}, h('legend', {}, name), inner.element), read: () => nonEmpty(inner.read(), required) };
  }
  const type = Array.isArray(schema?.type) ? schema.type.find((one) => one !== 'null') : schema?.type;
  const label = required ? name : `${name} (optional)`;
  const hint = schema?.description ?? hintOf(schema, type);
  const make = (control, read, write = (value) => (control.value = text(value))) => ({ element: field(label, control, hint), read, write });
  if (schema?.enum || schema?.const !== undefined) {
    const values = schema.enum ?? [schema.const];
    const control = select([['', '–'], ...values.map((value, at) => [String(at), text(value)])]);
    return make(control, () => (control.value === '' ? undefined : values[Number(control.value)]), (value) => {
      const at = values.findIndex((one) => JSON.stringify(one) === JSON.stringify(value));
      control.value = at < 0 ? '' : String(at);
    });
  }
  if (type === 'boolean') {
    const control = select([['', '–'], 'true', 'false']);
    return make(control, () => (control.value === '' ? undefined : control.value === 'true'));
  }
  if (type === 'number' || type === 'integer') {
    const control = h('input', { type: 'text', inputmode: 'decimal' });
    return make(control, () => {
      const given = control.value.trim();
      if (!given) return undefined;
      return Number.isFinite(Number(given)) ? Number(given) : given;
    });
  }
  if (type === 'string') {
    const control = h('input', { type: 'text' });
    return make(control, () => control.value || undefined);
  }
  const control = h('textarea', { rows: 2, spellcheck: 'false' });
  return make(control, () => {
    if (!control.value.trim()) return undefined;
    try {
      return JSON.parse(control.value);
    } catch {
      return control.value;
    }
  }, (value) => (control.value = value === undefined ? '' : JSON.stringify(value)));
}

const text = (value) => (value === undefined || value === null ? '' : typeof value === 'string' ? value : JSON.stringify(value));
const nonEmpty = (value, required) => (required || Object.keys(value).length ? value : undefined);

/** The rules of a value in words. */
function hintOf(schema, type) {
  if (!schema) return undefined;
  const { minimum, maximum, minLength, maxLength, pattern, format } = schema;
  const range = minimum !== undefined && maximum !== undefined ? `${minimum} to ${maximum}` : minimum !== undefined ? `at least ${minimum}` : maximum !== undefined ? `at most ${maximum}` : '';
  const length = maxLength !== undefined ? `at most ${maxLength} characters` : minLength !== undefined ? `at least ${minLength} characters` : '';
  const kind = ['array', 'object'].includes(type) || !type ? 'JSON' : type === 'string' ? '' : type;
  return [kind, format, range, length, pattern && `like ${pattern}`].filter(Boolean).join(', ') || undefined;
}
