/** Helpers for elements. Text never becomes markup. */

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

/** Announce a message to screen readers. */
export function say(message) {
  at("said").textContent = message.replaceAll("`", "");
}
