// What was just clicked, as code to copy. Each function returns a title and a text for each language.
import { button, h } from './dom.js';

const LANGUAGES = { curl: 'curl', typescript: 'TypeScript', java: 'Java', python: 'Python' };
let edge = 'http://127.0.0.1:8080';

export const setEdge = (url) => (edge = url);

const json = (value, indent) => JSON.stringify(value ?? null, null, indent);
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const inText = (text, spaces) => text.replaceAll('\n', `\n${' '.repeat(spaces)}`);
/** A name in single quotes, as TypeScript and Python read it. */
const quoted = (text) => `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`;
const key = (business) => business.apiKey ?? '$WIREPOST_API_KEY';
const header = (business) => (business.apiKey ? shell(`X-Api-Key: ${key(business)}`) : '"X-Api-Key: $WIREPOST_API_KEY"');
const options = (business) => [edge !== 'http://127.0.0.1:8080' && `--url ${edge}`, !business.apiKey && '--api-key "$WIREPOST_API_KEY"'].filter(Boolean).map((option) => ` ${option}`).join('');

function python(value, indent = 0) {
  const inner = ' '.repeat(indent + 4);
  if (value === null || value === undefined) return 'None';
  if (typeof value === 'boolean') return value ? 'True' : 'False';
  if (Array.isArray(value)) return value.length ? `[${value.map((item) => python(item, indent)).join(', ')}]` : '[]';
  if (typeof value !== 'object') return json(value);
  const fields = Object.entries(value).map(([name, item]) => `${json(name)}: ${python(item, indent + 4)}`);
  const line = `{${fields.join(', ')}}`;
  return line.length < 70 ? line : `{\n${fields.map((one) => `${inner}${one},\n`).join('')}${' '.repeat(indent)}}`;
}

const javaBlock = (text, spaces) => `"""\n${' '.repeat(spaces)}${inText(text.replaceAll('\\', '\\\\').replaceAll('"""', '\\"""'), spaces)}"""`;

function tokenCurl(business, { identity, clientType, tags }) {
  const query = new URLSearchParams({ uniqueId: identity, clientType, ...(tags && { tags }) });
  return `curl -s -H ${header(business)} \\\n  ${shell(`${edge}/${business.name}/websocket/token?${query}`)}`;
}

const typescriptClient = `import { Wirepost, fetchToken } from '@wirepost/client';

// Your backend makes the token call (see curl), so the API key never reaches the browser.
const client = new Wirepost({ token: (signal) => fetchToken('/api/wirepost-token', { signal }) });
`;
const pythonClient = (lines) => `import asyncio
from wirepost import HttpToken, Message, WirepostClient

async def main() -> None:
    # Your backend makes the token call (see curl), so the API key never leaves it.
    client = WirepostClient(HttpToken("https://app.example/api/wirepost-token"))
${lines}

asyncio.run(main())
`;
/** The content as an expression; as JSON text where that is none (`null`, more than ten fields). */
function java(value) {
  const simple = (one) => one !== null && (typeof one !== 'object' || (Object.keys(one).length <= 10 && Object.values(one).every(simple)));
  if (value === undefined || !simple(value)) return `JsonMapper.shared().readTree(${javaBlock(json(value, 2), 4)})`;
  if (Array.isArray(value)) return `List.of(${value.map(java).join(', ')})`;
  if (typeof value === 'object') return `Map.of(${Object.entries(value).map(([name, item]) => `${json(name)}, ${java(item)}`).join(', ')})`;
  return json(value);
}

const javaClient = (lines) => `// Your backend makes the token call (see curl), so the API key never leaves it.
TokenSource token = new HttpToken(URI.create("https://app.example/api/wirepost-token"));
try (WirepostClient client = WirepostClient.builder(token).build()) {
${lines}
}
`;

export function connect(business, client, messageType = '#') {
  const { identity, clientType, tags } = client;
  return {
    title: `Connect ${identity} and receive ${messageType === '#' ? 'everything' : messageType}`,
    curl: `# Your backend does this for the user who is logged in:\n${tokenCurl(business, client)}\n\n# On the command line, as a client:\nwirepost listen --business ${business.name} --id ${shell(identity)} --client-type ${clientType}${tags ? ` --tags ${shell(tags)}` : ''}${options(business)}\n`,
    typescript: `${typescriptClient}
client.on(${quoted(messageType)}, ({ messageType, content }) => console.log(messageType, content));
client.onGap(() => location.reload());   // messages may be missing: load your state again
`,
    java: javaClient(`    client.on(${json(messageType)}, message -> System.out.println(message.messageType() + " " + message.content()));
    client.onGap(gap -> reload());   // messages may be missing: load your state again
    client.start();
    Thread.currentThread().join();`),
    python: pythonClient(`
    @client.on(${json(messageType)})
    async def handle(message: Message) -> None:
        print(message.message_type, message.content)

    async with client:
        await asyncio.Event().wait()`),
  };
}

export function send(business, client, { messageType, to, content }) {
  const frame = { id: 'm-1', messageType, ...(to && { toUniqueId: to }), content };
  return {
    title: `Send ${messageType} as ${client.identity}`,
    curl: `# A client sends on its WebSocket, not by HTTP. On the command line:\nwirepost listen --business ${business.name} --id ${shell(client.identity)} --client-type ${client.clientType}${options(business)}\n# and type:\n${json(frame)}\n`,
    typescript: `${typescriptClient}
// Resolves when the broker has it on disk; survives reconnects. Rejects with a WirepostError: code, mayHaveArrived.
await client.send(${quoted(messageType)}, ${json(content, 2)}${to ? `, { to: ${quoted(to)} }` : ''});
`,
    java: javaClient(`    client.start();
    // Completes when the broker has it on disk; survives reconnects. Fails with a RejectedException.
    client.send(${to ? `Outgoing.of(${json(messageType)}, ${java(content)}).to(${json(to)})` : `${json(messageType)}, ${java(content)}`}).join();`),
    python: pythonClient(`
    async with client:
        # Returns when the broker has it on disk; raises Rejected.
        await client.send(${json(messageType)}, ${python(content, 8)}${to ? `, to=${json(to)}` : ''})`),
  };
}

export function push(business, message) {
  const { messageType, toUniqueId, toClientType, tags, content } = message;
  const url = `${edge}/${business.name}/websocket/messages`;
  const audience = [toUniqueId && `to=${json(toUniqueId)}`, tags && `tags=${python(tags)}`, toClientType && `to_client_type=${json(toClientType)}`].filter(Boolean).map((part) => `, ${part}`).join('');
  return {
    title: `Push ${messageType}`,
    curl: `curl -s -H ${header(business)} -H 'content-type: application/json' \\\n  -d ${shell(json(message))} \\\n  ${url}\n\n# or\nwirepost push ${business.name} ${shell(json(message))}${options(business)}\n`,
    typescript: `// In your service (Node.js). Confirmed when the answer is 200.
const answer = await fetch('${url}', {
  method: 'POST',
  headers: { 'x-api-key': process.env.WIREPOST_API_KEY!, 'content-type': 'application/json' },
  body: JSON.stringify(${inText(json(message, 2), 2)}),
});
if (!answer.ok) throw new Error((await answer.json()).description);
`,
    java: `// wirepost-spring-boot-starter. Returns when the broker has it; throws a PushException.
// private final WirepostTemplate wirepost;
wirepost.push(Outgoing.of(${json(messageType)}, ${java(content)})${[toUniqueId && `.to(${json(toUniqueId)})`, tags && `.toTags(${tags.map((tag) => json(tag)).join(', ')})`, toClientType && `.toClientType(${json(toClientType)})`].filter(Boolean).join('')});
`,
    python: `# In your service: app = WirepostApp(), see "receive"
await app.push(${json(messageType)}, ${python(content)}${audience})
`,
  };
}

export function receive(business, queue, { messageType = 'qr.refresh' }) {
  const short = queue.replace(`wirepost.${business.name}.q.`, '');
  return {
    title: `Receive ${messageType} in a service`,
    curl: `# Services consume queues by AMQP; there is no HTTP call for it. On a real RabbitMQ:\nwirepost dev --amqp amqp://guest:guest@localhost:5672 examples/\n# and your service consumes\n${queue}\n`,
    typescript: `import { connect } from 'amqplib';

const channel = await (await connect(process.env.AMQP_URL!)).createChannel();
await channel.prefetch(20);
await channel.consume(${quoted(queue)}, async (delivery) => {
  const message = JSON.parse(delivery!.content.toString());   // fromUniqueId is the sender, from its token
  await handle(message);
  channel.ack(delivery!);                                     // only after the work is done
});
`,
    java: `// wirepost-spring-boot-starter: acknowledged when the method returns
@WirepostListener(value = ${json(messageType)}, queue = ${json(short)})
void on(Message<JsonNode> message) {
    System.out.println(message.fromUniqueId() + " " + message.content());
}
`,
    python: `import asyncio
from wirepost import Message
from wirepost.service import WirepostApp

app = WirepostApp()  # the business whose Secret is mounted below SERVICE_BINDING_ROOT


@app.on(${json(messageType)}, queue=${json(short)})
async def handle(message: Message) -> None:  # acknowledged when it returns
    print(message.from_unique_id, message.content)


asyncio.run(app.run())
`,
  };
}

/** The panel. Returns how to show a snippet in it. */
export function codePanel(place) {
  const code = h('code', {});
  const pre = h('pre', { tabindex: 0, role: 'tabpanel', id: 'code-text', 'aria-label': 'Code' }, code);
  const title = h('h2', { id: 'code-title' }, 'The same in code');
  const copied = h('span', { role: 'status', class: 'quiet' });
  let snippet;
  let language = 'typescript';
  const names = Object.keys(LANGUAGES);
  const tabs = names.map((name) => button(LANGUAGES[name], () => choose(name), { role: 'tab', 'aria-controls': 'code-text' }));
  const choose = (name) => {
    language = name;
    names.forEach((one, at) => {
      tabs[at].setAttribute('aria-selected', String(one === name));
      tabs[at].tabIndex = one === name ? 0 : -1;
    });
    copied.textContent = '';
    code.textContent = snippet ? snippet[name] : 'Connect, send or push something: it is shown here as code.';
  };
  const list = h('div', { role: 'tablist', 'aria-label': 'Language', class: 'tabs' }, tabs);
  list.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (names.indexOf(language) + step + names.length) % names.length;
    choose(names[next]);
    tabs[next].focus();
  });
  const copy = button('Copy', async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      copied.textContent = 'Copied.';
    } catch {
      getSelection().selectAllChildren(code);
      copied.textContent = 'Selected: copy it with your keyboard.';
    }
  });
  const what = h('p', { class: 'quiet', id: 'code-what' });
  place.replaceChildren(title, what, h('div', { class: 'row' }, list, copy, copied), pre);
  choose(language);
  return (next) => {
    snippet = next;
    what.textContent = next.title;
    choose(language);
  };
}
