/** The form. The server renders its fields from the model's parameters. */

import { write } from "./dom.js";

const JSON_NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/;
/** Outside the form, Ctrl+Enter is left to these: on a link it opens a tab. */
const USES_ENTER = "a, button, summary, input, select";

export const form = document.getElementById("form");

const secret = form.querySelector("#key");
const problem = form.querySelector("#problem");
const countdown = form.querySelector("#countdown");
const keyPart = form.querySelector("#key-part");
const scenario = form.querySelector("#scenario");
const lora = form.querySelector("#lora");
const choice = form.querySelector("#model");
const fields = [...form.querySelectorAll("[name]")].filter((field) => !field.matches("fieldset"));

let retryAt = 0;
/** What the dry run of these values says of fields, by name. */
let faults = {};
/** Names of the LoRAs that the server has told. */
let offeredLoras = "";
/** Whether the problem is that the server does not answer. */
let isUnanswered = false;
/** The key that a link has brought. */
let linkedKey = "";

/** The slug of the chosen model. */
export function model() {
  return choice.value;
}

/** The values of all fields, as text, empty for a box without its tick; and the model. */
export function values() {
  return { model: model(), ...Object.fromEntries(fields.map((field) => [field.name, textOf(field)])) };
}

/** Fill the fields named in `texts`. A `model` among them is chosen if the server has it. */
export function fill(texts) {
  const option = [...choice.options].find(({ value }) => value === texts.model);
  if (option && !option.disabled) choose(option.value);
  for (const field of fields) {
    if (!(field.name in texts)) continue;
    if (field === lora) keepLora(texts.lora);
    if (isBox(field)) field.checked = texts[field.name] !== "";
    else field.value = texts[field.name];
  }
  changed();
}

/** Name and JSON literal of every field with a value. Numbers keep all their digits. */
export function literals() {
  return fields
    .filter((field) => !field.disabled && (textOf(field) !== "" || field.required))
    .map((field) => [field.name, literal(field)]);
}

export function json() {
  const pairs = literals().map(([name, text]) => `${JSON.stringify(name)}: ${text}`);
  return `{${pairs.join(", ")}}`;
}

export function apiKey() {
  return secret.value.trim();
}

/** Take a link's key in place of any other. */
export function takeKey(given) {
  secret.value = linkedKey = given;
  clear();
  showKeyState();
}

/** Seconds of video that the form asks for; NaN without numbers in their ranges. */
export function seconds() {
  const { frames, fps } = form.elements;
  const areValid = frames.validity.valid && fps.validity.valid;
  return areValid ? frames.valueAsNumber / fps.valueAsNumber : NaN;
}

export function hasProblem() {
  return problem.textContent !== "";
}

/** Fold the field of the key where it has one. */
export function foldKey() {
  const summary = keyPart.querySelector("summary");
  if (apiKey() && keyPart.contains(document.activeElement)) summary.focus();
  keyPart.open = apiKey() === "";
}

/** Offer the outcomes of a mock, or do not. */
export function offerScenarios(isMock) {
  if (scenario.disabled !== isMock) return;
  scenario.disabled = !isMock;
  form.querySelector("#scenario-part").hidden = !isMock;
  changed();
}

/** Let the user choose among the `usable` ones of the server's models, if it has several. */
export function offerModels(served, usable) {
  if (usable.length === 0) return;
  for (const option of choice.options) {
    option.hidden = option.disabled = !usable.includes(option.value);
  }
  form.querySelector("#model-part").hidden = served.length === 1;
  if (usable.includes(choice.value)) return;
  choose(usable[0]);
  changed();
}

/** Let the user choose among these LoRAs, if there are some. The chosen one stays while it is there. */
export function offerLoras(names) {
  if (names.join() === offeredLoras) return;
  offeredLoras = names.join();
  const chosen = lora.value;
  lora.replaceChildren(lora.options[0], ...names.map((name) => new Option(name)));
  lora.value = names.includes(chosen) ? chosen : "";
  lora.disabled = names.length === 0;
  form.querySelector("#lora-part").hidden = lora.disabled;
  changed();
}

/** A LoRA that is filled in before the server has told its names, or that has gone. */
function keepLora(name) {
  if (![...lora.options].some((option) => option.value === name)) lora.add(new Option(name));
}

/** Whether the form can be sent. The server checks the ranges. */
export function isSendable() {
  clear();
  const odd = fields.find((field) => field.validity.badInput);
  if (odd) reject(odd, "Enter a number.");
  else if (!apiKey()) reject(secret, "Enter an API key.");
  else if (!/^[\x21-\x7e]+$/.test(apiKey())) {
    reject(secret, "API keys contain printable ASCII characters only.");
  } else return true;
  return false;
}

/** Show a server error at the fields that it names. */
export function refuse(error) {
  clear();
  const messages = faultsOf(error);
  const wrong = fields.filter(({ name }) => name in messages);
  if (error.status === 401) reject(secret, error.message);
  else if (wrong.length > 0) rejectAll(wrong, messages);
  else say(error);
}

/** The messages of a server error for the fields that it names. */
function faultsOf({ status, message, parameters }) {
  if (fields.some(({ name }) => name in parameters)) return parameters;
  const named = status === 400 && fields.find(({ name }) => message.includes(`\`${name}\``));
  return named ? { [named.name]: message } : {};
}

/** Show at the key's field why the server refuses it, or that it does not. The focus stays. */
export function judgeKey(refusal) {
  if (refusal) mark(secret, refusal);
  else unmark(secret);
}

/**
 * Show at the fields how a dry run has failed, and remove all other errors. The field with the
 * focus gets no new one: its value may be half-typed.
 */
export function judge(error) {
  faults = error ? faultsOf(error) : {};
  for (const field of fields) {
    const isMarked = field.hasAttribute("aria-invalid");
    if (!(field.name in faults)) {
      if (isMarked && !field.validity.badInput) unmark(field);
    } else if (isMarked || field !== document.activeElement) mark(field, messageFor(field, faults));
  }
}

/** Remove all errors. */
export function clear() {
  faults = {};
  [secret, ...fields].forEach(unmark);
  problem.textContent = "";
  isUnanswered = false;
  retryAt = 0;
  tick();
}

/** Called every second. */
export function tick() {
  const left = Math.ceil((retryAt - Date.now()) / 1000);
  countdown.textContent = left > 0 ? `You can try again in ${left} s.` : "";
  if (retryAt > 0 && left <= 0) {
    retryAt = 0;
    problem.textContent = "";
    changed();
  }
}

/** The server answers again: its silence is no problem any more. */
export function forgiveSilence() {
  if (!isUnanswered) return;
  isUnanswered = false;
  problem.textContent = "";
  changed();
}

function say(error) {
  write(problem, error.message);
  isUnanswered = error.status === 0;
  retryAt = error.retrySeconds > 0 ? Date.now() + error.retrySeconds * 1000 : 0;
  tick();
}

function reject(field, message) {
  mark(field, message);
  field.focus();
}

function mark(field, message) {
  field.setAttribute("aria-invalid", "true");
  write(errorOf(field), message);
  if (field === secret) keyPart.open = true;
}

function unmark(field) {
  field.removeAttribute("aria-invalid");
  errorOf(field).textContent = "";
}

/** The first one gets the focus. */
function rejectAll(wrong, messages) {
  for (const field of wrong.toReversed()) reject(field, messageFor(field, messages));
}

/** The page has labels in place of the API's names. */
function messageFor(field, messages) {
  const [label] = field.labels;
  return messages[field.name].replace(`\`${field.name}\``, label.textContent);
}

function errorOf(field) {
  return document.getElementById(`${field.id}-error`);
}

function isBox(field) {
  return field.type === "checkbox";
}

function textOf(field) {
  return isBox(field) && !field.checked ? "" : field.value;
}

function literal(field) {
  if (isBox(field)) return field.value;
  const isNumber = field.type === "number" && !field.validity.badInput;
  if (!isNumber) return JSON.stringify(field.value);
  return JSON_NUMBER.test(field.value) ? field.value : String(field.valueAsNumber);
}

/** Update what depends on the fields. Called after each change. */
function changed() {
  faults = {};
  for (const slider of form.querySelectorAll("[data-for]")) {
    slider.value = form.elements[slider.dataset.for].value;
  }
  for (const field of form.querySelectorAll("[data-most]")) {
    const [count, most] = [[...field.value].length, Number(field.dataset.most)];
    const counter = document.getElementById(`${field.id}-count`);
    counter.textContent = `${count.toLocaleString()} / ${most.toLocaleString()}`;
    counter.hidden = count < most / 2;
    counter.classList.toggle("over", count > most);
  }
  showKeyState();
  form.dispatchEvent(new Event("changed"));
}

function choose(slug) {
  choice.value = slug;
  takeRanges();
}

/** Give the numbers the ranges and defaults of the model. A value that it does not take goes. */
function takeRanges() {
  form.action = `v2/${choice.value}`;
  const numbers = JSON.parse(choice.selectedOptions[0].dataset.numbers);
  for (const [name, { least, most, range, value }] of Object.entries(numbers)) {
    const field = form.elements[name];
    const isIn = field.value !== "" && field.value - least >= 0 && most - field.value >= 0;
    const kept = isIn && field.value !== field.defaultValue ? field.value : value;
    for (const input of [field, ...form.querySelectorAll(`[data-for="${name}"]`)]) {
      Object.assign(input, { min: least, max: most, defaultValue: value });
    }
    field.value = kept;
    field.placeholder = value;
    document.querySelector(`#${name}-hint .range`).textContent = `${range}.`;
  }
}

function showKeyState() {
  const source = apiKey() === linkedKey ? "Set by the link" : "Set for this tab";
  form.querySelector("#key-state").textContent = apiKey() ? source : "";
}

form.addEventListener("change", ({ target }) => {
  if (target.id !== "model") return;
  takeRanges();
  clear();
  changed();
});
form.addEventListener("input", ({ target }) => {
  if (target.dataset.for) form.elements[target.dataset.for].value = target.value;
  changed();
});
form.addEventListener("focusout", ({ target }) => {
  if (target.name in faults) mark(target, messageFor(target, faults));
});
form.addEventListener("click", ({ target }) => {
  const { fill: example, draw } = target.closest("button")?.dataset ?? {};
  if (example) fill(JSON.parse(example));
  if (draw) fill({ [draw]: crypto.getRandomValues(new Uint32Array(1))[0] });
});
form.addEventListener("reset", () => {
  const kept = secret.value;
  setTimeout(() => {
    secret.value = kept; // the example has no key
    takeRanges();
    clear();
    changed();
  });
});
document.addEventListener("keydown", (event) => {
  const { key, target, repeat } = event;
  if (key !== "Enter") return;
  const hasOwnUse = target.closest(USES_ENTER) && !form.contains(target);
  const isShortcut = (event.ctrlKey || event.metaKey) && !hasOwnUse;
  // The browser submits, too, by Enter in a field: a held key would submit again and again.
  if (isShortcut || (repeat && target.matches("#form :not(textarea)"))) event.preventDefault();
  if (isShortcut && !repeat) form.requestSubmit();
});
if (/Mac|iP/.test(navigator.platform)) form.querySelector("kbd").textContent = "⌘";
// The styles need it to stick the form by its end where the window is lower than the form.
new ResizeObserver(() => {
  form.style.setProperty("--height", `${form.offsetHeight}px`);
}).observe(form);
changed();
