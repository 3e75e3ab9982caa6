/** The form's request as code to copy, without the key; and a response as JSON. */

import { STILLS } from "./api.js";

const IS_NAME = /^[A-Za-z_]\w*$/;
const IS_WHOLE = /^-?\d+$/;

/** The file that the code writes. */
export function fileName(literals) {
  const format = new Map(literals).get("format");
  return `mochi.${format ? JSON.parse(format) : "mp4"}`;
}

/** Names of the stills that are asked for. */
function stillsOf(literals) {
  return STILLS.filter((name) => new Map(literals).has(name));
}

/** The blocking call. An error is printed and does not become a video file. */
export function curl(origin, model, literals) {
  return [
    `curl --fail-with-body ${quoted(`${origin}/${model}`)} \\`,
    `  -H "x-api-key: $MOCHI_API_KEY" \\`,
    `  -H 'content-type: application/json' \\`,
    `  -d ${quoted(`{\n${fields(literals, "    ")}\n  }`)} \\`,
    `  -o mochi.part && mv mochi.part ${fileName(literals)} ||`,
    `  { cat mochi.part; rm -f mochi.part; false; }`,
  ].join("\n");
}

/** The official SDK. JSON numbers and strings are valid Python, and `true` is not. */
export function python(origin, model, literals) {
  const params = pythonic(literals).map(([name, literal]) =>
    IS_NAME.test(name) ? `    ${name}=${literal},` : `    **{"${name}": ${literal}},`,
  );
  return [
    "import os",
    "from urllib.request import urlretrieve",
    "",
    "from segmind import SegmindClient",
    "",
    "client = SegmindClient(",
    '    api_key=os.environ["MOCHI_API_KEY"],',
    `    base_url=${JSON.stringify(origin)},`,
    ")",
    "result = client.run(",
    `    ${JSON.stringify(model)},`,
    ...params,
    ")",
    `urlretrieve(result["output"], "${fileName(literals)}")`,
    ...stillsOf(literals).map(
      (name) => `urlretrieve(result["${name}"]["url"], "mochi-${name}.jpg")`,
    ),
  ].join("\n");
}

/** The blocking call with requests. */
export function requests(origin, model, literals) {
  return [
    "import os",
    "",
    "import requests",
    "",
    "response = requests.post(",
    `    ${JSON.stringify(`${origin}/${model}`)},`,
    '    headers={"x-api-key": os.environ["MOCHI_API_KEY"]},',
    "    json={",
    `${fields(pythonic(literals), "        ")},`,
    "    },",
    ")",
    "if not response.ok:",
    "    raise SystemExit(response.text)",
    `with open("${fileName(literals)}", "wb") as file:`,
    "    file.write(response.content)",
  ].join("\n");
}

/** The blocking call with fetch. Larger integers than JavaScript's are sent as text. */
export function javascript(origin, model, literals) {
  const exact = literals.map(([name, literal]) => {
    const isLarge = IS_WHOLE.test(literal) && !Number.isSafeInteger(Number(literal));
    return [name, isLarge ? `"${literal}"` : literal];
  });
  return [
    'import { writeFile } from "node:fs/promises";',
    "",
    `const response = await fetch(${JSON.stringify(`${origin}/${model}`)}, {`,
    '  method: "POST",',
    "  headers: {",
    '    "x-api-key": process.env.MOCHI_API_KEY,',
    '    "content-type": "application/json",',
    "  },",
    "  body: JSON.stringify({",
    `${fields(exact, "    ")},`,
    "  }),",
    "});",
    "if (!response.ok) throw new Error(await response.text());",
    `await writeFile("${fileName(literals)}", response.body);`,
  ].join("\n");
}

/** The response, without the data of its preview. */
export function response(body) {
  if (body === null) return "Generate a video to see its status and result here.";
  const text = JSON.stringify(
    body,
    (name, value) => (name === "preview" ? "data:image/…" : value),
    2,
  );
  return text.replace(/^ {2}"seed": "(-?\d+)"/m, '  "seed": $1'); // see `parse` of api.js
}

function pythonic(literals) {
  return literals.map(([name, literal]) => [name, literal === "true" ? "True" : literal]);
}

function fields(literals, indent) {
  return literals.map(([name, literal]) => `${indent}"${name}": ${literal}`).join(",\n");
}

function quoted(text) {
  return /^[\w./:-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
