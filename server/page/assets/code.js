/** The code section: the form's request in several languages, and the latest answer. */

import { address } from "./api.js";
import { at, copy, element } from "./dom.js";
import * as form from "./form.js";
import * as snippets from "./snippets.js";

const HINTS = {
  python: "Needs pip install segmind. Writes mochi.mp4. The key comes from MOCHI_API_KEY.",
  requests: "Needs pip install requests. Writes mochi.mp4. The key comes from MOCHI_API_KEY.",
  javascript: "Needs Node.js 18. Writes mochi.mp4. The key comes from MOCHI_API_KEY.",
  curl: "Writes mochi.mp4. The key comes from MOCHI_API_KEY.",
  answer: "The latest answer about the request above.",
};
const TOKENS =
  /(?<string>"(?:[^"\\\n]|\\.)*"|'[^'\n]*')|(?<value>\b\d+(?:\.\d+)?\b)|(?<word>\b(?:import|from|as|with|if|not|raise|new|throw|const|await|curl|true|false|null)\b)/g;

let answer = null;

/** Keep the latest status of the request that is shown, or null. */
export function note(body) {
  answer = body;
  if (tab() === "answer") draw();
}

/** Show the chosen tab. */
export function draw() {
  const name = tab();
  const text =
    name === "answer"
      ? snippets.answer(answer)
      : snippets[name](address("v1"), form.model, form.literals());
  at("snippet").replaceChildren(...coloured(text));
  at("snippet-hint").textContent = HINTS[name];
}

function tab() {
  return document.querySelector("[name=tab]:checked").value;
}

function coloured(text) {
  const nodes = [];
  let end = 0;
  for (const { 0: token, index, groups } of text.matchAll(TOKENS)) {
    const [kind] = Object.keys(groups).filter((name) => groups[name] !== undefined);
    nodes.push(text.slice(end, index), element("span", token, { className: kind }));
    end = index + token.length;
  }
  return [...nodes, text.slice(end)];
}

at("copy").addEventListener("click", ({ target }) => copy(target, at("snippet").textContent));
for (const choice of document.querySelectorAll("[name=tab]")) {
  choice.addEventListener("change", draw);
}
