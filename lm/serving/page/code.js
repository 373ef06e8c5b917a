// Writes the request that was just asked as a curl command and as a Python program.
import { key, url } from "./api.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Returns a command for a POSIX shell. */
export function curl({ path, body, streams }) {
  return [
    `curl ${streams ? "-N " : ""}${quoted(url(path))} \\`,
    ...(key.get() ? ['  -H "Authorization: Bearer $LM_API_KEY" \\'] : []),
    "  -H 'Content-Type: application/json' \\",
    `  -d ${quoted(JSON.stringify(body))}`,
  ].join("\n");
}

/** Returns a program that needs Python and nothing else. */
export function python({ path, body, streams }) {
  const headers = ['"Content-Type": "application/json"'];
  if (key.get()) headers.push('"Authorization": "Bearer " + os.environ["LM_API_KEY"]');
  const read = streams
    ? [
        "    for line in answer:",
        '        if line.startswith(b"data: {"):',
        '            print(json.loads(line.removeprefix(b"data: ")))',
      ]
    : ["    print(json.load(answer))"];
  return [
    "import json",
    ...(key.get() ? ["import os"] : []),
    "import urllib.request",
    "",
    `body = ${literal(body)}`,
    "request = urllib.request.Request(",
    `    ${literal(url(path))},`,
    "    json.dumps(body).encode(),",
    `    {${headers.join(", ")}},`,
    ")",
    "with urllib.request.urlopen(request) as answer:",
    ...read,
  ].join("\n");
}

/** Returns a JSON value as Python writes it. */
function literal(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, each]) => `${literal(name)}: ${literal(each)}`).join(", ")}}`;
  }
  return JSON.stringify(value); // Python reads JSON's strings and numbers alike
}
