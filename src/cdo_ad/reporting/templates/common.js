"use strict";
// what the pages share
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const number = (v, digits = 3) => (v === null || v === undefined || Number.isNaN(v) ? "–" : v.toFixed(digits));
const percent = (v) => (v === null || v === undefined || Number.isNaN(v) ? "–" : (100 * v).toFixed(1) + " %");
const withEnds = (r) => (r.n ? [percent(r.value), `${percent(r.low)} – ${percent(r.high)}`] : "–");
const card = (title, value, note, id) => {
  const big = el("b", id ? { id } : {}, value);
  return el("div", { class: "card" }, el("span", {}, title), big, el("span", {}, note));
};
// a cell is a text or a number, or [what it says, a small line below]
const content = (cell) => (Array.isArray(cell) ? [String(cell[0]), el("small", {}, cell[1])] : [String(cell)]);
function table(id, head, rows, now = () => false) {
  const body = rows.map((row) => el("tr", now(row) ? { class: "now" } : {}, ...row.map((cell) => el("td", {}, ...content(cell)))));
  $(id).replaceChildren(el("thead", {}, el("tr", {}, ...head.map((h) => el("th", {}, h)))), el("tbody", {}, ...body));
}
// ---- charts
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const CONFIG = { responsive: true, displaylogo: false, displayModeBar: false };
function layout(title, x, y, extra = {}) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), automargin: true };
  return { title: { text: title, font: { size: 14 } }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: css("--fg"), family: "system-ui, sans-serif", size: 12 }, margin: { l: 52, r: 14, t: 40, b: 44 },
    legend: { y: 1, yanchor: "top", x: 1, xanchor: "right", bgcolor: "rgba(0,0,0,0)" },
    xaxis: { ...axis, title: { text: x }, ...(extra.xaxis || {}) }, yaxis: { ...axis, title: { text: y }, ...(extra.yaxis || {}) },
    ...(extra.more || {}) };
}
function theme(name, draw) {
  document.documentElement.dataset.theme = name;
  draw();
}
// on paper: light, and charts as wide as a page (A4 or letter), since a browser prints them at their width on screen
function paper(on) {
  document.documentElement.classList.toggle("paper", on);
  for (const chart of document.querySelectorAll(".js-plotly-plot"))  // Plotly.Plots.resize would come too late
    Plotly.relayout(chart, on ? { width: chart.clientWidth, height: chart.clientHeight } : { width: null, height: null, autosize: true });
}
// light or dark as the system says, switched by the button
function startTheme(draw) {
  const current = () => document.documentElement.dataset.theme;
  $("theme").addEventListener("click", () => theme(current() === "dark" ? "light" : "dark", draw));
  let before = "light";
  window.addEventListener("beforeprint", () => { before = current(); theme("light", draw); paper(true); });
  window.addEventListener("afterprint", () => { paper(false); theme(before, draw); });
  theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light", draw);
}
