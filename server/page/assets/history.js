/**
 * What the browser stores: the tab's key and form, and this browser's requests.
 *
 * Key and form go to sessionStorage, requests to localStorage. Each request carries a mark of its
 * key, so that the list shows only requests of the current key. The mark is 32 bits of a hash: it
 * distinguishes keys and does not reveal them. (The browser's SHA-256 exists only with TLS.)
 */

const REQUESTS = "mochi-server requests";
const KEY = "mochi-server key";
const DRAFT = "mochi-server draft";
const PRESS = "mochi-server press";
const MOST = 30;
/** Characters of a poster: all of them take a tenth of what a browser keeps for a site. */
const MOST_POSTER = 16_000;

/** In memory, for browsers that refuse storage. */
const spare = new Map();

export const key = {
  get: () => recall(sessionStorageOrNone(), KEY) ?? "",
  set: (secret) => keep(sessionStorageOrNone(), KEY, secret),
};

/** The last submit without an answer: its model, its body and its idempotency key. */
export const press = {
  get: () => JSON.parse(recall(sessionStorageOrNone(), PRESS) ?? "null"),
  set: (pressed) => keep(sessionStorageOrNone(), PRESS, JSON.stringify(pressed)),
};

/** The form's values. */
export const draft = {
  get: () => JSON.parse(recall(sessionStorageOrNone(), DRAFT) ?? "{}"),
  set: (values) => keep(sessionStorageOrNone(), DRAFT, JSON.stringify(values)),
};

/** Requests of a key that have not expired, newest first. */
export function requests(secret) {
  const own = mark(secret);
  return all().filter((entry) => entry.mark === own);
}

export function find(requestId) {
  return all().find((entry) => entry.id === requestId);
}

/** Store a request with the values of its form. */
export function add(requestId, secret, values) {
  const entry = { id: requestId, at: Date.now(), mark: mark(secret), values };
  store([entry, ...all().filter(({ id }) => id !== requestId)].slice(0, MOST));
}

/** Store the latest status. */
export function note(requestId, body) {
  const heard = { status: body.status, code: body.error_code, expires: body.expires_at };
  store(all().map((entry) => (entry.id === requestId ? { ...entry, ...heard } : entry)));
}

/** Store a small picture of its video, as a data URL. */
export function illustrate(requestId, poster) {
  if (poster.length > MOST_POSTER) return;
  store(all().map((entry) => (entry.id === requestId ? { ...entry, poster } : entry)));
}

/** Delete a request that its own key no longer finds. */
export function forget(requestId, secret) {
  const own = mark(secret);
  store(all().filter((entry) => entry.id !== requestId || entry.mark !== own));
}

/** Call `listener` when another tab changes the requests. */
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
    return []; // not written by this page
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
