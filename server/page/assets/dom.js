/** Helpers for elements. Text never becomes markup. */

const COPIED = "Copied";

export const at = (id) => document.getElementById(id);

export function element(name, text = "", properties = {}) {
  return Object.assign(document.createElement(name), { textContent: text }, properties);
}

export function hide(...elements) {
  for (const one of elements) one.hidden = true;
}

/** Show a message of the server: what stands in backticks is code. */
export function write(target, message) {
  const parts = message.split("`");
  const nodes = parts.map((part, index) => (index % 2 ? element("code", part) : part));
  target.replaceChildren(...nodes.filter((node) => node !== ""));
}

/** Copy a text, and say so on the button. */
export async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(button, text); // navigator.clipboard exists only with TLS
  }
  const name = button.textContent;
  if (name === COPIED) return;
  say(COPIED);
  button.textContent = COPIED;
  setTimeout(() => (button.textContent = name), 2000);
}

function copyBySelection(button, text) {
  const area = element("textarea", text, { className: "unseen" });
  button.after(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  button.focus();
}

/** Announce a message to screen readers. */
export function say(message) {
  at("said").textContent = message.replaceAll("`", "");
}
