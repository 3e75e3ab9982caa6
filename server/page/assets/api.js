/** Client for the public API of the server that served this page. Does not touch the page. */

/** Pictures that a result has beside its video, where they were asked for. */
export const STILLS = ["poster", "last_frame"];

const FIRST_WORD_MS = 8_000;
/** More than two heartbeats: a silent stream is buffered by a proxy, or broken. */
const SILENCE_MS = 40_000;
const POLL_MS = 2_000;
const MOST_POLLS = 16;
/** Transient: the server stops or lacks its broker, or a proxy lacks the server. */
const PASSING = new Set([0, 429, 500, 502, 503, 504]);

/** An error response. `status` is 0 when no response came. */
export class ApiError extends Error {
  constructor(status, message, retrySeconds = 0, parameters = {}) {
    super(message);
    this.status = status;
    this.retrySeconds = retrySeconds;
    this.parameters = parameters; // the message of each wrong one, by its name
  }

  get isPassing() {
    return PASSING.has(this.status);
  }
}

/** A URL of the API, also below a proxy's path. */
export function address(path) {
  return new URL(path, document.baseURI).href;
}

/** Queue a video; once per `idempotencyKey`. */
export async function submit(model, key, json, idempotencyKey) {
  const headers = { "content-type": "application/json", "idempotency-key": idempotencyKey };
  return read(await send(`v2/${model}`, key, { method: "POST", headers, body: json }));
}

/** Dry run: price and forecast; queues nothing. */
export async function tryOut(model, key, json, signal) {
  const options = { method: "POST", headers: { "content-type": "application/json" }, body: json };
  return read(await send(`v2/${model}?dry_run=true`, key, { ...options, signal }));
}

/** The status of a request, or its result. */
export async function ask(requestId, key, signal) {
  return read(await send(pathOf(requestId), key, { signal }));
}

/** The balance of a key. */
export async function credits(key) {
  return read(await send("v1/get-user-credits", key, {}));
}

/** Slugs of the models that a key may use. */
export async function models(key) {
  const { data } = await read(await send("v1/models", key, {}));
  return data.map(({ id }) => id);
}

/** What /readyz and /version say, or null where the server does not answer. */
export async function server() {
  try {
    const answers = ["readyz", "version"].map((path) => fetch(address(path), { cache: "no-store" }));
    const [ready, version] = await Promise.all(answers);
    return { ...(await ready.json()), ...(await version.json()) };
  } catch {
    return null;
  }
}

export async function cancel(requestId, key) {
  return read(await send(`${pathOf(requestId)}/cancel`, key, { method: "PUT" }));
}

/** Queue the steps that a draft has left; a draft has one finish. */
export async function finish(requestId, key) {
  return read(await send(`${pathOf(requestId)}/finish`, key, { method: "POST" }));
}

export function isEnded(body) {
  return body.status === "COMPLETED" || body.status === "FAILED";
}

/**
 * Yield status bodies of a request, then its result or failure; `{ trouble }` while the server is
 * unreachable. Uses the event stream; when it breaks, polls and retries the stream with back-off.
 */
export async function* follow(requestId, key, signal) {
  for (let polls = 1; ; polls = Math.min(polls * 2, MOST_POLLS)) {
    try {
      for await (const body of events(requestId, key, signal)) {
        polls = 1;
        yield body;
        if (isEnded(body)) return;
      }
    } catch (error) {
      if (signal.aborted || !error.isPassing) throw error;
    }
    for (let left = polls; left > 0; left--) {
      await pause(POLL_MS, signal);
      const body = await askOn(requestId, key, signal);
      yield body;
      if (isEnded(body)) return;
    }
  }
}

async function askOn(requestId, key, signal) {
  try {
    return await ask(requestId, key, signal);
  } catch (error) {
    if (signal.aborted || !error.isPassing) throw error;
    return { trouble: error.message };
  }
}

/** Server-sent events by fetch: EventSource cannot send a key. */
async function* events(requestId, key, signal) {
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), FIRST_WORD_MS);
  try {
    const both = AbortSignal.any([signal, silence.signal]);
    const answer = await send(`${pathOf(requestId)}/events`, key, { signal: both });
    if (!answer.ok) await read(answer);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ; ) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE_MS);
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data:"));
        if (data.length > 0) yield parse(data.map((line) => line.slice(5)).join("\n"));
      }
    }
  } catch (error) {
    if (error instanceof ApiError || signal.aborted) throw error;
    throw new ApiError(0, String(error)); // cut off, or silent
  } finally {
    clearTimeout(timer);
    silence.abort();
  }
}

async function send(path, key, options) {
  try {
    return await fetch(address(path), {
      ...options,
      headers: { ...options.headers, "x-api-key": key },
      cache: "no-store",
    });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, "The server does not answer. Check that it runs and that you are online.");
  }
}

async function read(answer) {
  let body = null;
  try {
    body = parse(await answer.text());
  } catch {
    // Cut off, or from a proxy
  }
  if (body !== null && (answer.ok || body.status === "FAILED")) return body;
  const words = body?.error ?? `The server cannot answer right now (${answer.status}).`;
  const status = answer.ok ? 0 : answer.status;
  const retrySeconds = Number(answer.headers.get("retry-after")) || 0;
  throw new ApiError(status, words, retrySeconds, body?.parameters);
}

/** JSON, with the seed as text: it may exceed JavaScript's number precision. */
function parse(text) {
  const body = JSON.parse(text);
  const seed = /"seed":\s*(-?\d+)/.exec(text); // within a string, its quotes are escaped
  return seed === null ? body : { ...body, seed: seed[1] };
}

function pathOf(requestId) {
  return `v2/requests/${encodeURIComponent(requestId)}`;
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    signal.addEventListener("abort", stop, { once: true });
  });
}
