/** The form's request as code to copy, without the key. */

/** The blocking call. An error is printed and does not become a video file. */
export function curl(origin, model, literals) {
  const body = literals.map(([name, literal]) => `    "${name}": ${literal}`).join(",\n");
  return [
    `curl --fail-with-body ${quoted(`${origin}/${model}`)} \\`,
    `  -H "x-api-key: $MOCHI_API_KEY" \\`,
    `  -H 'content-type: application/json' \\`,
    `  -d ${quoted(`{\n${body}\n  }`)} \\`,
    `  -o mochi.part && mv mochi.part mochi.mp4 ||`,
    `  { cat mochi.part; rm -f mochi.part; false; }`,
  ].join("\n");
}

/** The official SDK. JSON numbers and strings are valid Python. */
export function python(origin, model, literals) {
  const params = literals.map(([name, literal]) => `    ${name}=${literal},`).join("\n");
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
    params,
    ")",
    'urlretrieve(result["output"], "mochi.mp4")',
  ].join("\n");
}

function quoted(text) {
  return /^[\w./:-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
