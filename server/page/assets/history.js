/**
 * The requests that this browser made, and what stays of a tab when it is reloaded.
 *
 * Key and form are kept by the tab (sessionStorage), and the requests by the browser (localStorage). A
 * request is known to nobody but its key, so each bears a mark of the key that made it, and those
 * of other keys are out of sight until their key is back. The mark is 32 bits of a hash: by it
 * keys can be told apart, and not be guessed. (The browser's own SHA-256 is only there with TLS.)
 */

const REQUESTS = "mochi-server requests";
const KEY = "mochi-server key";
const DRAFT = "mochi-server draft";
const PRESS = "mochi-server press";
const MOST = 30;

/** Where the browser refuses to keep anything, it is kept as long as the page. */
const spare = new Map();

export const key = {
  get: () => recall(sessionStorageOrNone(), KEY) ?? "",
  set: (secret) => keep(sessionStorageOrNone(), KEY, secret),
};

/** The last press of Generate that has no answer yet: what it asked for, and by which name. */
export const press = {
  get: () => JSON.parse(recall(sessionStorageOrNone(), PRESS) ?? "null"),
  set: (pressed) => keep(sessionStorageOrNone(), PRESS, JSON.stringify(pressed)),
};

/** What stands in the form. */
export const draft = {
  get: () => JSON.parse(recall(sessionStorageOrNone(), DRAFT) ?? "{}"),
  set: (values) => keep(sessionStorageOrNone(), DRAFT, JSON.stringify(values)),
};

/** Those of a key that may still live, the newest first. */
export function requests(secret) {
  const own = mark(secret);
  return all().filter((entry) => entry.mark === own);
}

export function find(requestId) {
  return all().find((entry) => entry.id === requestId);
}

/** Remember a request, by the values of its form. */
export function add(requestId, secret, values) {
  const entry = { id: requestId, at: Date.now(), mark: mark(secret), values };
  store([entry, ...all().filter(({ id }) => id !== requestId)].slice(0, MOST));
}

/** Remember what was last heard of it. */
export function note(requestId, body) {
  const heard = { status: body.status, code: body.error_code, expires: body.expires_at };
  store(all().map((entry) => (entry.id === requestId ? { ...entry, ...heard } : entry)));
}

/** Its own key does not find it any more. To another key it was never there. */
export function forget(requestId, secret) {
  const own = mark(secret);
  store(all().filter((entry) => entry.id !== requestId || entry.mark !== own));
}

/** Another tab has changed something. */
export function onChange(listener) {
  addEventListener("storage", (event) => {
    if (event.key === REQUESTS) listener();
  });
}

function all() {
  try {
    const entries = JSON.parse(recall(localStorageOrNone(), REQUESTS) ?? "[]");
    return entries.filter(({ expires }) => !expires || Date.parse(expires) > Date.now());
  } catch {
    return []; // something else wrote there
  }
}

function store(entries) {
  keep(localStorageOrNone(), REQUESTS, JSON.stringify(entries));
}

function mark(secret) {
  let hash = 0x811c9dc5; // FNV-1a
  for (const character of secret) {
    hash = Math.imul(hash ^ character.codePointAt(0), 0x01000193);
  }
  return (hash >>> 0).toString(36);
}

function recall(storage, name) {
  return storage?.getItem(name) ?? spare.get(name) ?? null;
}

function keep(storage, name, text) {
  try {
    storage.setItem(name, text);
  } catch {
    spare.set(name, text);
  }
}

function sessionStorageOrNone() {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
}

function localStorageOrNone() {
  try {
    return localStorage;
  } catch {
    return null;
  }
}
