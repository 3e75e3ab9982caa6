/** The header: the server's state and the key's balance. */

import * as api from "./api.js";
import { at, write } from "./dom.js";
import * as words from "./words.js";

const READY_MS = 20_000;
const WAITING_MS = 4_000;

const pill = at("server");

let timer = 0;

/** Show the server's state while the page is visible. Calls `onMock` with whether it is a mock. */
export function watch(onMock) {
  const look = async () => {
    clearTimeout(timer);
    if (document.hidden) return;
    const state = words.server(await api.server());
    pill.dataset.state = state.name;
    pill.textContent = state.text;
    write(at("notice"), state.remedy);
    at("notice").hidden = !state.remedy;
    onMock(state.isMock);
    clearTimeout(timer);
    timer = setTimeout(look, state.name === "ready" ? READY_MS : WAITING_MS);
  };
  document.addEventListener("visibilitychange", look);
  look();
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
