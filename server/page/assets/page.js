/** The page: event handlers, and the request that is shown. */

import * as api from "./api.js";
import * as code from "./code.js";
import { at, element, say, write } from "./dom.js";
import * as form from "./form.js";
import * as history from "./history.js";
import * as server from "./server.js";
import * as view from "./view.js";
import * as words from "./words.js";

const REFRESH_MS = 10_000;
const OFFER_MS = 600;
/** Characters of a prompt in the list; CSS cuts the rest. */
const MOST_LISTED = 120;

/** A link to this page may have a key in its fragment, which reaches no server. */
const KEY_LINK = /^#key=(.+)$/;

const keyBox = at("key");
const generate = at("generate");

let following = new AbortController();
let isSending = false;
/** The key when its field was last left: a half-typed key is not sent. */
let givenKey = "";
/** Slugs of the server's models. */
let served = [];
let offering = { asked: new AbortController() };
/** The result shown, if any. */
let result = null;

// Submit

/** One press is one video: retries of an unanswered press reuse its idempotency key. */
async function submit() {
  if (isSending || !form.isSendable()) return;
  const [model, secret, values] = [form.model(), form.apiKey(), form.values()];
  const json = form.json();
  const before = history.press.get();
  const isSame = before?.json === json && before.model === model;
  const press = isSame ? before : { model, json, name: randomName() };
  history.press.set(press);
  sending(true);
  try {
    const { request_id: requestId } = await api.submit(model, secret, json, press.name);
    history.press.set(null);
    history.add(requestId, secret, values);
    form.foldKey();
    go(requestId);
    at("request").scrollIntoView({ block: "nearest" });
  } catch (error) {
    if (!error.isPassing) history.press.set(null);
    refuse(error);
  } finally {
    sending(false);
    offerSoon();
  }
}

function refuse(error) {
  form.refuse(error);
  if (error.isPassing) server.doubt();
}

/** Show the dry run's price and forecast once the form rests. */
function offerSoon() {
  clearTimeout(offering.timer);
  at("offer").textContent = words.offer(form.seconds());
  offering.asked.abort();
  offering = { asked: new AbortController() };
  offering.timer = setTimeout(offer, OFFER_MS, offering.asked.signal);
}

async function offer(signal) {
  if (!givenKey || form.apiKey() !== givenKey || form.hasProblem()) return;
  try {
    const trial = await api.tryOut(form.model(), givenKey, form.json(), signal);
    if (signal.aborted) return;
    form.judge(null);
    write(at("offer"), words.offer(form.seconds(), trial, view.isBusy()));
  } catch (error) {
    if (error.isPassing) server.doubt(); // a submit shows the error
    else if (signal.aborted) return;
    else if (error.status === 400) form.judge(error);
    else if (error.status === 403) write(at("offer"), error.message);
  }
}

function sending(isSent) {
  isSending = isSent;
  generate.setAttribute("aria-disabled", String(isSent));
  at("generate-text").textContent = isSent ? "Sending …" : "Generate";
}

/** `crypto.randomUUID` exists only with TLS. */
function randomName() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Follow

/** The URL's fragment names the request, so reload and Back work. */
function go(requestId) {
  if (requestOfAddress() === requestId) show(requestId);
  else location.hash = requestId;
}

function requestOfAddress() {
  return location.hash.slice(1);
}

async function show(requestId) {
  following.abort();
  following = new AbortController();
  const { signal } = following;
  const secret = form.apiKey();
  result = null;
  view.cancelling(false);
  view.begin(requestId, history.find(requestId) ?? null);
  code.note(null);
  list();
  try {
    for await (const body of api.follow(requestId, secret, signal)) {
      if (signal.aborted) return;
      view.update(body);
      if (body.trouble) server.doubt();
      else hear(requestId, body);
    }
  } catch (error) {
    if (signal.aborted) return;
    view.lose(error);
    if (error.status === 401) form.refuse(error);
    if (error.status === 404) forget(requestId, secret);
  }
}

function hear(requestId, body) {
  if (body.status === "COMPLETED") result = body;
  history.note(requestId, body);
  code.note(body);
  list();
  if (!api.isEnded(body)) return;
  offerSoon(); // the queue is shorter now
  server.showBalance(form.apiKey());
}

function forget(requestId, secret) {
  history.forget(requestId, secret);
  list();
}

async function cancel() {
  const { id } = at("request").dataset;
  const { signal } = following;
  view.cancelling(true);
  try {
    await api.cancel(id, form.apiKey());
  } catch (error) {
    if (signal.aborted) return;
    view.cancelling(false);
    refuse(error);
  }
}

/** Queue the rest of the draft that is shown. It is listed as a request of this browser. */
async function finish() {
  const draft = result;
  const secret = form.apiKey();
  at("finish").disabled = true;
  try {
    const { request_id: requestId } = await api.finish(draft.request_id, secret);
    if (!history.find(requestId)) {
      const values = history.find(draft.request_id)?.values;
      const whole = { ...values, prompt: draft.prompt, seed: draft.seed, draft_steps: "" };
      history.add(requestId, secret, whole);
    }
    go(requestId);
  } catch (error) {
    refuse(error);
  } finally {
    at("finish").disabled = false;
  }
}

// History

function list() {
  const entries = history.requests(form.apiKey());
  at("videos").hidden = entries.length === 0;
  const texts = JSON.stringify([entries, requestOfAddress()]);
  if (at("history").dataset.texts === texts) return;
  at("history").dataset.texts = texts;
  at("history").replaceChildren(...entries.map(item));
}

function item(entry) {
  const link = element("a", "", { href: `#${entry.id}` });
  if (entry.id === requestOfAddress()) link.setAttribute("aria-current", "true");
  link.append(
    entry.poster
      ? element("img", "", { className: "poster", src: entry.poster, alt: "" })
      : element("span", "", { className: "poster" }),
  );
  for (const [className, text] of [
    ["prompt", entry.values.prompt.slice(0, MOST_LISTED)],
    ["state", entry.status ? words.outcome(entry) : ""],
    ["time", words.clock(entry.at)],
  ]) {
    link.append(element("span", text, { className }), " ");
  }
  link.dataset.state = entry.code === "cancelled" ? "CANCELLED" : (entry.status ?? "");
  const row = element("li");
  row.append(link);
  return row;
}

/** Refresh the requests that may have changed, or all, except the followed one. */
async function refresh(isForAll = false) {
  const secret = form.apiKey();
  if (!secret || document.hidden) return;
  for (const { id, status } of history.requests(secret)) {
    if (id === requestOfAddress() || (api.isEnded({ status }) && !isForAll)) continue;
    try {
      history.note(id, await api.ask(id, secret));
    } catch (error) {
      if (error.status === 404) history.forget(id, secret);
      else break;
    }
  }
  list();
}

/** Before a submit: the server may refuse the key. */
async function checkKey() {
  const checked = givenKey;
  const refusal = await server.showBalance(checked);
  if (refusal === null || form.apiKey() !== checked) return;
  form.judgeKey(refusal);
  if (refusal) say(refusal);
}

/** Offer the models of the server that the key may use; all while that is unknown. */
async function offerModels() {
  const [key, all] = [givenKey, served];
  let usable = all;
  try {
    if (key && all.length > 1) usable = await api.models(key);
  } catch {
    // Without the scope `read`, the dry run says what the key may use.
  }
  if (key === givenKey && all === served) form.offerModels(all, usable);
}

function invite() {
  write(at("invitation"), words.invitation(form.apiKey()));
}

/** Another key shows other requests. */
function changeKey() {
  history.key.set(form.apiKey());
  givenKey = form.apiKey();
  checkKey();
  offerModels();
  invite();
  offerSoon();
  list();
  if (requestOfAddress()) show(requestOfAddress());
  refresh(true);
}

// Events

form.form.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
form.form.addEventListener("changed", () => {
  history.draft.set(form.values());
  invite();
  code.draw();
  offerSoon();
});
keyBox.addEventListener("input", () => history.key.set(form.apiKey()));
keyBox.addEventListener("change", changeKey);
at("show-key").addEventListener("click", ({ target }) => {
  const isShown = keyBox.type === "text";
  keyBox.type = isShown ? "password" : "text";
  target.setAttribute("aria-pressed", String(!isShown));
});
at("cancel").addEventListener("click", cancel);
at("finish").addEventListener("click", finish);
at("use-seed").addEventListener("click", () => {
  form.fill({ seed: result.seed });
  at("seed").focus();
  say(`The seed is ${result.seed}`);
});
at("use-all").addEventListener("click", () => {
  const { values } = history.find(at("request").dataset.id);
  form.fill({ ...values, ...(result && { seed: result.seed }) });
  at("prompt").focus();
  say("The form has this request's settings");
});
at("request").addEventListener("poster", ({ detail }) => {
  history.illustrate(at("request").dataset.id, detail);
  list();
});
addEventListener("hashchange", () => {
  if (takeKey()) {
    changeKey();
    form.foldKey();
  } else if (requestOfAddress()) show(requestOfAddress());
});
history.onChange(list);
setInterval(() => {
  form.tick();
  view.tick();
}, 1000);
setInterval(() => refresh(), REFRESH_MS);

// Start and reload

/** Move the key of a link to the form, and clear the address. Whether there was one. */
function takeKey() {
  const secret = KEY_LINK.exec(location.hash)?.[1];
  if (secret === undefined) return false;
  window.history.replaceState(null, "", location.pathname + location.search);
  form.takeKey(secret);
  history.key.set(secret);
  return true;
}

keyBox.value = history.key.get();
takeKey();
givenKey = form.apiKey();
form.foldKey();
form.fill(history.draft.get());
list();
server.watch((state, before) => {
  form.offerScenarios(state.isMock);
  if (served.join() !== state.models.join()) {
    served = state.models;
    offerModels();
  }
  form.offerLoras(state.loras);
  if (before === "away" && state.name !== "away") form.forgiveSilence();
});
checkKey();
if (form.apiKey()) {
  const going = history.requests(form.apiKey()).find((entry) => !api.isEnded(entry));
  if (requestOfAddress()) show(requestOfAddress());
  else if (going) go(going.id);
  refresh(true);
}
