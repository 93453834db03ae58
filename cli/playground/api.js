// The dev server's calls.

/** A call that changes something: the edge's answer, or why there is none. */
export async function call(name, query, body) {
  const url = `/playground/api/${name}?${new URLSearchParams(query)}`;
  try {
    const response = await fetch(url, { method: 'POST', headers: { 'content-type': 'application/json' }, body });
    return await response.json();
  } catch {
    return { result: -1, description: 'wirepost dev does not answer; is it still running?' };
  }
}

export async function state() {
  const response = await fetch('/playground/api/state');
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

/** Calls `onNotice` with each notice, and `onLine` with whether the dev server is there. */
export function notices(onNotice, onLine) {
  let source;
  let run;
  const open = () => {
    source = new EventSource('/playground/api/notices');
    source.onmessage = ({ data }) => {
      const notice = JSON.parse(data);
      if (notice.kind === 'hello') {
        // Another run of the dev server: its page may differ, and nothing of the old run is valid.
        if (run !== undefined && run !== notice.run) location.reload();
        run = notice.run;
        onLine(true);
      }
      onNotice(notice);
    };
    source.onerror = () => {
      onLine(false);
      // Refused, so the browser does not try again.
      if (source.readyState === EventSource.CLOSED) setTimeout(open, 2000);
    };
  };
  open();
}
