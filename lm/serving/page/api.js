// Talks to the server, and turns what goes wrong into plain words.
import { t } from "./texts.js";

/** What went wrong, as a text for the reader. `status` is 0 if the server could not be reached. */
export class Problem extends Error {
  constructor(status, message, detail = "") {
    super(message);
    this.status = status;
    this.detail = detail;
  }
}

const WORDS = {
  400: "wrong",
  401: "key-needed",
  404: "unknown",
  413: "too-large",
  422: "wrong",
  424: "failed",
  429: "busy",
  500: "failed",
  503: "not-ready",
  504: "late",
};

export const key = {
  get: () => sessionStorage.getItem("key") ?? "",
  set: (value) => sessionStorage.setItem("key", value),
};

/** Returns a URL of the server, which may stand behind a path of its own. */
export const url = (path) => new URL(`..${path}`, import.meta.url).href;

export async function get(path) {
  return (await request(path, {})).json();
}

export async function post(path, body, signal) {
  return (await request(path, { method: "POST", body: JSON.stringify(body), signal })).json();
}

export async function text(path) {
  return (await request(path, {})).text();
}

/** Yields the events of a stream; each is a JSON value. */
export async function* events(path, body, signal) {
  const answer = await request(path, { method: "POST", body: JSON.stringify(body), signal });
  const decoder = new TextDecoder();
  let rest = "";
  for await (const part of parts(answer.body, signal)) {
    rest += decoder.decode(part, { stream: true });
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      const data = line.slice("data: ".length);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Problem(500, t("error.failed"), worded(event));
      yield event;
    }
  }
  throw new Problem(0, t("error.broken"));
}

async function* parts(body, signal) {
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, t("error.broken"));
  }
}

async function request(path, options) {
  const headers = options.body ? { "content-type": "application/json" } : {};
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  let answer;
  try {
    answer = await fetch(url(path), { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Problem(0, t("error.unreachable"));
  }
  if (answer.ok) return answer;
  throw await problem(answer);
}

async function problem(answer) {
  const word = WORDS[answer.status] ?? "failed";
  const wait = answer.headers.get("retry-after");
  const message = word === "busy" && wait ? t("error.busy-wait", { n: wait }) : t(`error.${word}`);
  const found = await answer.json().catch(() => ({}));
  // The server's own words say which field is wrong. Of a fault of its own there is nothing more to say.
  return new Problem(answer.status, message, ["wrong", "unknown", "too-large"].includes(word) ? worded(found) : "");
}

function worded(found) {
  return typeof found.error === "string" ? found.error : (found.error?.message ?? "");
}
