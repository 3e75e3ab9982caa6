/** The header: the server's state and the key's balance. */

import * as api from "./api.js";
import { at, write } from "./dom.js";
import * as words from "./words.js";

const READY_MS = 20_000;
const WAITING_MS = 4_000;

const pill = at("server");

let timer = 0;
let listener;

/** Show the server's state while the page is visible. Calls `onState` with it and the one before. */
export function watch(onState) {
  listener = onState;
  document.addEventListener("visibilitychange", look);
  look();
}

/** Look at once: a call has failed at a server that is shown as ready. */
export function doubt() {
  if (pill.dataset.state === "ready") look();
}

async function look() {
  clearTimeout(timer);
  if (document.hidden) return;
  const state = words.server(await api.server());
  const before = pill.dataset.state;
  pill.dataset.state = state.name;
  pill.textContent = state.text;
  write(at("notice"), state.remedy);
  at("notice").hidden = !state.remedy;
  listener(state, before);
  clearTimeout(timer);
  timer = setTimeout(look, state.name === "ready" ? READY_MS : WAITING_MS);
}

/**
 * Show the balance; nothing where the key may not read it. Returns why the server refuses the key:
 * "" if it does not, null if that is unknown.
 */
export async function showBalance(key) {
  let [text, refusal] = ["", ""];
  try {
    if (key) text = words.balance(await api.credits(key));
  } catch (error) {
    refusal = error.status === 401 ? error.message : null;
  }
  at("balance").textContent = text;
  return refusal;
}
