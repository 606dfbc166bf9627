// Building the page without a framework.

import { picture } from "./api.js";

// h("p", { class: "quiet", onclick: f }, "text", otherNode)
export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && name !== "list" && name !== "form") node[name] = value;
    else node.setAttribute(name === "class" ? "class" : name, value === true ? "" : value);
  }
  if (properties.class) node.className = properties.class;
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const $ = (selector) => document.querySelector(selector);

export function say(error) {
  const place = $("#message");
  place.textContent = error ? (error.message ?? error) : "";
  place.hidden = !error;
}

// A button whose work may fail, and which cannot be pressed twice.
export function button(text, work, properties = {}) {
  const node = h("button", { type: "button", ...properties }, text);
  node.addEventListener("click", async () => {
    node.disabled = true;
    say("");
    try {
      await work();
    } catch (error) {
      say(error);
    } finally {
      node.disabled = false;
    }
  });
  return node;
}

export function table(caption, heads, rows) {
  return h("div", { class: "scroll" },
    h("table", {},
      h("caption", { class: "quiet" }, caption),
      h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell) => h("td", {}, cell ?? "")))))));
}

export function facts(pairs) {
  return h("dl", {}, pairs.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

// An image that is fetched with the key once it comes into view.
const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    picture(target.dataset.path).then((address) => { target.src = address; }).catch(() => {
      target.alt += " (not kept)";
    });
  }
});

export function lazy(path, alt) {
  const node = h("img", { alt });
  node.dataset.path = path;
  seen.observe(node);
  return node;
}

// A button that opens a choice of files, and a place to drop or paste them.
export function filePicker(text, take, multiple = false) {
  const input = h("input", { type: "file", accept: "image/*,.tif,.tiff,.heic,.pgm,.ppm,.jp2", multiple, class: "hidden-input",
    onchange: () => { take([...input.files]); input.value = ""; } });
  return h("label", {}, input, h("span", { class: "button" }, text));
}

export function dropZone(node, take) {
  node.addEventListener("dragover", (event) => { event.preventDefault(); node.classList.add("over"); });
  node.addEventListener("dragleave", () => node.classList.remove("over"));
  node.addEventListener("drop", (event) => {
    event.preventDefault();
    node.classList.remove("over");
    take([...event.dataTransfer.files]);
  });
  return node;
}

export const percent = (share) => `${(100 * share).toLocaleString("en", { maximumFractionDigits: 2 })} %`;
export const number = (value) => Number(value).toLocaleString("en", { maximumSignificantDigits: 4 });
export const when = (seconds) => new Date(seconds * 1000).toLocaleString();
export const decisionWords = (row) => (row.anomalous ? "✕ Anomalous" : "✓ Good");
export const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
