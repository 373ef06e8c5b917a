// Tries the page of a server in Chromium; see page.sh. Exits with 1 if a check fails.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [url, folder, executablePath] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core"), "utf8");
const LANGUAGES = { en: "en-US", zh: "zh-CN" };
const WIDTHS = [400, 1280];
const models = (await (await fetch(`${url}/tasks`)).json()).models;
const problems = [];
let checks = 0;

/** Runs a check and goes on if it fails, so that one run tells everything. */
async function check(name, what) {
  checks += 1;
  try {
    await what();
  } catch (error) {
    problems.push(`${name}: ${error.message}`);
    console.log(`FAILED ${name}: ${error.message}`);
  }
}

async function withPage(options, use) {
  const profile = mkdtempSync(join(tmpdir(), "lm-page-"));
  const args = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"];
  const browser = await chromium.launchPersistentContext(profile, { executablePath, args, bypassCSP: true, ...options });
  const page = browser.pages()[0] ?? (await browser.newPage());
  const said = [];
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && said.push(message.text()));
  page.on("pageerror", (error) => said.push(String(error)));
  const elsewhere = [];
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith("data:")) elsewhere.push(request.url());
  });
  try {
    await use(page, { said, elsewhere });
  } finally {
    await browser.close();
    rmSync(profile, { recursive: true, force: true });
  }
}

const answered = (page) => page.waitForSelector("#answer[aria-busy=false] :is(.said, .ranking)", { timeout: 60000 });

async function accessible(page, name) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run());
  const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  const worded = (found) => `${found.id}: ${found.nodes.map((node) => node.html.slice(0, 120)).join(" | ")}`;
  assert.deepEqual(serious.map(worded), [], name);
  return violations.map(worded);
}

async function fits(page) {
  const [inner, outer] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(inner <= outer, `the page is ${inner} px wide on a screen of ${outer}`);
}

// MODELS="embed=minilm" asks that model for that task; otherwise the first one that can do it is asked.
const wanted = Object.fromEntries((process.env.MODELS ?? "").split(",").filter(Boolean).map((each) => each.split("=")));
const names = [...new Set(models.flatMap((model) => model.tasks))];

// ---- Every task, in both languages, at both widths, light and dark ---------------------------------

for (const [language, locale] of Object.entries(LANGUAGES)) {
  for (const width of WIDTHS) {
    await withPage({ locale, viewport: { width, height: 900 } }, async (page, { said, elsewhere }) => {
      await page.goto(url);
      await page.waitForSelector("form.ask");
      await check(`${language} is the browser's language`, async () => {
        assert.equal(await page.evaluate(() => document.documentElement.lang.slice(0, 2)), language);
      });
      for (const name of names) {
        const where = `${name} ${language} ${width}`;
        await check(where, async () => {
          await page.goto(`${url}/#${name}`);
          await page.waitForSelector(`#tasks a[aria-current][href="#${name}"]`, { state: "attached" });
          await page.emulateMedia({ colorScheme: "light" });
          if (wanted[name]) await page.selectOption("#model", wanted[name]);
          await page.click("form.ask .example");
          await answered(page);
          await fits(page);
          await page.screenshot({ path: `${folder}/${name}-${language}-${width}.png`, fullPage: true });
          const minor = await accessible(page, "light");
          if (minor.length) console.log(`minor: ${where}: ${minor.join("; ")}`);
          await page.click("button[aria-expanded]");
          await page.waitForSelector(".attention[aria-busy=false] button.token");
          const before = await page.$eval(".attention ul", (keys) => keys.innerHTML);
          await page.click(".attention button.token:nth-child(3)");
          assert.notEqual(await page.$eval(".attention ul", (keys) => keys.innerHTML), before);
          await fits(page);
          await page.screenshot({ path: `${folder}/${name}-${language}-${width}-attention.png`, fullPage: true });
          await accessible(page, "attention");
          await page.emulateMedia({ colorScheme: "dark" });
          await accessible(page, "dark");
          if (width === 1280) await page.screenshot({ path: `${folder}/${name}-${language}-dark.png`, fullPage: true });
        });
      }
      await check(`console ${language} ${width}`, async () => assert.deepEqual(said, []));
      await check(`nothing from elsewhere ${language} ${width}`, async () => assert.deepEqual(elsewhere, []));
    });
  }
}

// ---- What was asked, as curl and as Python ---------------------------------------------------------

await withPage({ locale: "en-US" }, async (page) => {
  for (const name of names) {
    await check(`copied code of ${name}`, async () => {
      await page.context().grantPermissions(["clipboard-read", "clipboard-write"], { origin: url });
      await page.goto(`${url}/#${name}`);
      await page.waitForSelector(`#tasks a[aria-current][href="#${name}"]`, { state: "attached" });
      const box = page.locator("form.ask textarea, form.ask input[type=text]").first();
      await box.fill(`It's a "quote" \\ 我 $HOME [MASK]`);
      await page.keyboard.press("Control+Enter");
      await answered(page);
      const copy = async (place) => {
        await page.click(`.actions button:nth-last-of-type(${place})`);
        await page.waitForFunction(() => document.querySelector(".actions [role=status]").textContent);
        return page.evaluate(() => navigator.clipboard.readText());
      };
      const [curl, python] = [await copy(2), await copy(1)];
      const [fromCurl, fromPython] = [execFileSync("sh", ["-c", `${curl} -s`]), execFileSync("python3", ["-c", python])];
      const numbers = (text) => (String(text).match(/-?\d+\.\d+(e-?\d+)?/g) ?? []).map((each) => Number(each).toFixed(4));
      assert.ok(fromCurl.length > 2);
      assert.ok(!/"error"/.test(fromCurl), String(fromCurl));
      assert.deepEqual(numbers(fromCurl), numbers(fromPython));
    });
  }
});

// ---- Errors in plain words, the keyboard, the themes, a key ----------------------------------------

await withPage({ locale: "en-US" }, async (page, { said }) => {
  const name = names[0];
  const told = async () => (await page.waitForSelector("#answer .problem")).innerText();
  await page.goto(`${url}/#${name}`);
  await page.waitForSelector("form.ask");
  const ask = async () => {
    await page.click("form.ask .first");
    await page.waitForSelector("#answer[aria-busy=false]");
  };
  const refuse = (status, headers = {}) =>
    page.route("**/tasks/*", (route) =>
      status ? route.fulfill({ status, headers, json: { error: { message: "the words of the server." } } }) : route.abort(),
    );
  for (const [status, words, headers] of [
    [429, "busy. Try again in 7 s", { "retry-after": "7" }],
    [503, "starting or stopping"],
    [504, "too long"],
    [500, "Something went wrong in the server"],
    [413, "more text than the server takes"],
    [400, "the words of the server"],
    [401, "needs an API key"],
    [0, "does not answer"],
  ]) {
    await check(`error ${status}`, async () => {
      await refuse(status, headers);
      await ask();
      assert.ok((await told()).includes(words), await told());
      await accessible(page, "error");
      await page.unroute("**/tasks/*");
    });
  }
  await check("an empty field", async () => {
    await page.fill("form.ask textarea", " ");
    await page.click("form.ask .first");
    assert.ok((await told()).includes("every field"));
  });
  await check("a request can be stopped", async () => {
    await page.route("**/tasks/*", () => {}); // never answered
    await page.click("form.ask .example");
    await page.click("#stop");
    await page.waitForSelector("#answer[aria-busy=false]");
    assert.ok(await page.isHidden("#stop"));
    await page.unroute("**/tasks/*");
  });
  await check("the keyboard reaches everything", async () => {
    await page.goto(`${url}/#${name}`);
    await page.reload();
    await page.waitForSelector("form.ask");
    const reached = [];
    for (let i = 0; i < 40; i++) {
      await page.keyboard.press("Tab");
      reached.push(await page.evaluate(() => document.activeElement.className || document.activeElement.id || document.activeElement.hash));
    }
    for (const one of ["skip", "quiet", "example", "first", `#${names.at(-1)}`]) assert.ok(reached.includes(one), `${one} of ${reached}`);
  });
  await check("the languages and the themes can be switched", async () => {
    await page.click("#language");
    await page.waitForFunction(() => document.documentElement.lang === "zh-CN");
    await page.click("#theme");
    await page.click("#theme");
    assert.equal(await page.evaluate(() => getComputedStyle(document.body).backgroundColor), "rgb(22, 24, 22)");
    await page.reload();
    await page.waitForSelector("form.ask");
    assert.equal(await page.evaluate(() => document.documentElement.lang), "zh-CN");
    assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "dark");
  });
  const unexpected = said.filter((each) => !each.startsWith("Failed to load resource"));
  await check("console at errors", async () => assert.deepEqual(unexpected, []));
});

// ---- Answers that these models do not give ----------------

const OTHERS = {
  classify: { label: "positive", scores: { positive: 0.93, negative: 0.07 } },
  tag: {
    entities: [
      { label: "PER", start: 0, end: 12, text: "Ada Lovelace", score: 0.99 },
      { label: "LOC", start: 25, end: 31, text: "London", score: 0.98 },
    ],
  },
  extract: { answer: "Marie Curie", start: 0, end: 11, score: 0.91 },
  rerank: { ranking: [{ index: 0, score: 0.97 }, { index: 2, score: 0.11 }, { index: 1, score: 0.03 }] },
  answer: { text: "Where the file is", score: -0.1 },
};
await withPage({ locale: "en-US", viewport: { width: 1280, height: 900 } }, async (page, { said }) => {
  const model = { ...models[0], tasks: Object.keys(OTHERS) };
  await page.route("**/tasks", (route) => route.fulfill({ json: { models: [model] } }));
  await page.route("**/tasks/*", (route) => {
    const name = new URL(route.request().url()).pathname.split("/").at(-1);
    if (name !== "answer") return route.fulfill({ json: { answers: [OTHERS[name]] } });
    const events = [{ index: 0, text: "Where the" }, { index: 0, text: " file is" }, { index: 0, answer: OTHERS.answer }];
    const body = [...events.map((each) => JSON.stringify(each)), "[DONE]"].map((each) => `data: ${each}\n\n`).join("");
    return route.fulfill({ headers: { "content-type": "text/event-stream" }, body });
  });
  for (const name of Object.keys(OTHERS)) {
    await check(`shown: ${name}`, async () => {
      await page.goto(`${url}/#${name}`);
      await page.waitForSelector(`#tasks a[aria-current][href="#${name}"]`, { state: "attached" });
      await page.click("form.ask .example");
      await page.waitForSelector("#answer[aria-busy=false] :is(.said, .ranking)");
      await accessible(page, name);
      await page.screenshot({ path: `${folder}/shown-${name}.png`, fullPage: true });
    });
  }
  await check("marked", async () => {
    await page.goto(`${url}/#tag`);
    await page.waitForSelector("mark.entity");
    const marked = await page.$$eval("mark.entity", (all) => all.map((each) => each.textContent));
    assert.deepEqual(marked, ["Ada LovelacePER", "LondonLOC"]);
  });
  await check("an answer is marked in its passage", async () => {
    await page.goto(`${url}/#answer`);
    await page.waitForSelector(".passage mark");
    assert.equal(await page.textContent(".passage mark"), "where the file is");
  });
  await check("console at shown tasks", async () => assert.deepEqual(said, []));
});

console.log(`${checks - problems.length} of ${checks} checks passed; the screenshots are in ${folder}`);
process.exit(problems.length ? 1 : 0);
