// Builds elements. Text always enters as text nodes, so an answer can never become markup.

/**
 * Returns a new element.
 * @param {string} tag a tag with classes, such as "p.note".
 * @param {Object} options attributes; a function under "onclick" and the like listens to that event.
 * @param {...(Node|string|null|Array)} children strings become text; null is left out.
 */
export function el(tag, options = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(options)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** Returns a bar whose length is a share between 0 and 1. The number beside it says the same in text. */
export function bar(share) {
  const filled = el("span.fill");
  filled.style.setProperty("--share", Math.max(0, Math.min(1, share)));
  return el("span.bar", { "aria-hidden": "true" }, filled);
}

/** Returns a message about what went wrong. `detail` is what the server said of it, if anything. */
export function told(message, detail) {
  return el("div.problem", { role: "alert" }, el("p", {}, message), detail ? el("p.detail", {}, detail) : null);
}
