/** The code section: the form's request in several languages, and the latest response. */

import { address, STILLS } from "./api.js";
import { at, copy, element, write } from "./dom.js";
import * as form from "./form.js";
import * as snippets from "./snippets.js";

const HINTS = {
  python: "Reads the key from `MOCHI_API_KEY`, writes `FILE`. Needs `pip install segmind`.",
  requests: "Reads the key from `MOCHI_API_KEY`, writes `FILE`. Needs `pip install requests`.",
  javascript: "Reads the key from `MOCHI_API_KEY`, writes `FILE`. Needs Node.js 18.",
  curl: "Reads the key from `MOCHI_API_KEY`, writes `FILE`.",
  response: "The server's latest response for the request above.",
};
const NO_STILLS = "It returns the video only; the Python tab gets the stills, too.";
const DRAFT = "draft_steps";
const TOKENS =
  /(?<string>"(?:[^"\\\n]|\\.)*"|'[^'\n]*')|(?<value>\b\d+(?:\.\d+)?\b)|(?<word>\b(?:import|from|as|with|if|not|raise|new|throw|const|await|curl|true|True|false|null)\b)/g;

let latest = null;

/** Keep the latest status of the request that is shown, or null. */
export function note(body) {
  latest = body;
  if (tab() === "response") draw();
}

/** Show the chosen tab. */
export function draw() {
  const name = tab();
  // The calls wait for one video, and some of them refuse a draft. Only the SDK's has its stills.
  const all = form.literals();
  const whole = all.filter(([field]) => field !== DRAFT);
  const literals = name === "python" ? whole : whole.filter(([field]) => !STILLS.includes(field));
  const text =
    name === "response"
      ? snippets.response(latest)
      : snippets[name](address("v1"), form.model(), literals);
  at("snippet").replaceChildren(...coloured(text));
  const hints = [HINTS[name].replace("FILE", snippets.fileName(literals))];
  if (name !== "response") {
    if (whole.length < all.length) hints.push("It makes the whole video, no draft.");
    if (literals.length < whole.length) hints.push(NO_STILLS);
  }
  write(at("snippet-hint"), hints.join(" "));
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
