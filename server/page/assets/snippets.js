/** The request of the form as code to copy. The key is never in it. */

/**
 * Waits for the video; an error is shown, and takes the place of no video. In single quotes a shell
 * changes nothing.
 */
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

/** The official SDK. JSON's numbers and strings are Python's as well. */
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
