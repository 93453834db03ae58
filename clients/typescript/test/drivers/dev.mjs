// A real edge for a test: `wirepost dev`. WIREPOST names the program.
import { spawn } from 'node:child_process';
import { createServer } from 'node:net';

const freePort = () =>
  new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });

export async function until(what, condition) {
  for (let n = 0; n < 3000; n++) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`not within 30 s: ${what}`);
}

/** Serves the declarations in a file or folder until the test `t` has ended. Returns its address. */
export async function dev(t, declarations, business) {
  const [port, admin] = [await freePort(), await freePort()];
  const edge = `http://127.0.0.1:${port}`;
  const program = spawn(process.env.WIREPOST, ['dev', '--listen', `127.0.0.1:${port}`, '--admin', `127.0.0.1:${admin}`, declarations]);
  t.after(() => program.kill());
  await until('the edge listens', () => fetch(`${edge}/${business}/asyncapi.json`).then(({ ok }) => ok, () => false));
  return edge;
}
