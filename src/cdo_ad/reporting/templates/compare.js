"use strict";
const COLOURS = ["--accent", "--bad", "--third", "--fourth", "--soft"];
const colour = (i) => css(COLOURS[i % COLOURS.length]);
const [BASE, ...OTHERS] = D.runs;
const signed = (v) => (v === null ? "–" : `${v > 0 ? "+" : v < 0 ? "−" : "±"}${Math.abs(100 * v).toFixed(1)}`);
const between = (d) => (d.low === null ? "" : ` (${signed(d.low)} to ${signed(d.high)})`);

// ---- tables
function metricTable(id, rows, first) {
  const head = el("tr", {}, el("th", {}, first), ...D.runs.map((r) => el("th", {}, r.name)),
    ...OTHERS.map((r) => el("th", {}, `${r.name} − ${BASE.name}, percentage points (95 %)`)));
  const body = rows.map((row) => el("tr", {}, el("td", {}, row.name, ...(row.note ? [el("small", {}, row.note)] : [])),
    ...row.values.map((v, i) => el("td", {}, percent(v), el("small", {},
      row.intervals[i].low === null ? "" : `${percent(row.intervals[i].low)} – ${percent(row.intervals[i].high)}`))),
    ...row.differences.map((d) => el("td", {}, signed(d.value) + between(d),
      el("small", { class: d.verdict }, d.verdict === "unknown" ? "" : d.verdict)))));
  $(id).replaceChildren(el("thead", {}, head), el("tbody", {}, ...body));
}

// ---- charts
function drawForest() {
  const rows = [...D.rows].reverse();
  const traces = OTHERS.map((run, k) => {
    const known = rows.filter((r) => r.differences[k].value !== null && r.differences[k].low !== null);
    const d = known.map((r) => r.differences[k]);
    return { type: "scatter", mode: "markers", name: run.name, x: d.map((v) => 100 * v.value),
      y: known.map((r) => rows.indexOf(r) + (k - (OTHERS.length - 1) / 2) * 0.15), marker: { size: 9, color: colour(k + 1) },
      error_x: { type: "data", symmetric: false, array: d.map((v) => Math.max(0, 100 * (v.high - v.value))),
        arrayminus: d.map((v) => Math.max(0, 100 * (v.value - v.low))), color: colour(k + 1) },
      hovertemplate: "%{x:.2f} points<extra>%{fullData.name}</extra>" };
  });
  const zero = { type: "line", x0: 0, x1: 0, yref: "paper", y0: 0, y1: 1, line: { color: css("--fg"), width: 1, dash: "dash" } };
  Plotly.react("forest", traces, layout(`Difference to ${BASE.name}`, "percentage points", "", {
    yaxis: { tickvals: rows.map((_, i) => i), ticktext: rows.map((r) => r.name), range: [-0.6, rows.length - 0.4] },
    more: { shapes: [zero], showlegend: OTHERS.length > 1, margin: { l: 100, r: 14, t: OTHERS.length > 1 ? 64 : 40, b: 44 },
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" } } }), CONFIG);
}
const CURVES = [
  ["image_roc", "ROC of images", "false-positive rate", "true-positive rate", 1],
  ["image_pr", "Precision-recall of images", "recall", "precision", 1],
  ["pixel_roc", "ROC of pixels", "false-positive rate", "true-positive rate", 1],
  ["pixel_pro", "PRO: overlap of regions", "false-positive rate of pixels", "mean overlap of a region", 0.3],
];
function drawCurves() {
  const there = CURVES.filter(([key]) => D.runs.some((r) => r.curves[key]));
  $("curve-heading").hidden = !there.length;
  if (!$("charts").children.length)
    $("charts").replaceChildren(...there.map(([key]) => el("div", { class: "chart", id: `curve-${key}` })));
  for (const [key, title, x, y, end] of there) {
    const traces = D.runs.map((r, i) => r.curves[key] && { type: "scatter", mode: "lines", name: r.name, ...r.curves[key],
      line: { color: colour(i), width: 2, dash: i ? "solid" : "dash" } }).filter(Boolean);
    Plotly.react(`curve-${key}`, traces, layout(title, x, y, { xaxis: { range: [0, end * 1.02] }, yaxis: { range: [0, 1.02] },
      more: { legend: { ...(key === "image_pr" ? { x: 0, xanchor: "left" } : { x: 1, xanchor: "right" }), y: 0, yanchor: "bottom",
        bgcolor: "rgba(0,0,0,0)" } } }), CONFIG);
  }
}
const bad = D.images.map((p) => p.type !== "good");
function drawHistograms() {
  if (!$("histograms").children.length)
    $("histograms").replaceChildren(...D.runs.map((_, i) => el("div", { class: "chart", id: `scores-${i}` })));
  D.runs.forEach((run, i) => {
    const low = Math.min(...run.ratios, 1), high = Math.max(...run.ratios, 1), size = (high - low) / 30 || 1;
    const bars = (name, wanted, paint) => ({ type: "histogram", name, x: run.ratios.filter((_, k) => bad[k] === wanted), opacity: 0.65,
      xbins: { start: low, end: high + size, size }, autobinx: false, marker: { color: css(paint) } });
    const line = { type: "line", x0: 1, x1: 1, yref: "paper", y0: 0, y1: 1, line: { color: css("--fg"), width: 2, dash: "dash" } };
    Plotly.react(`scores-${i}`, [bars("good", false, "--good"), bars("defective", true, "--bad")],
      layout(run.name, "score / threshold", "images", { more: { barmode: "overlay", shapes: [line] } }), CONFIG);
  });
}
function drawImages() {
  const run = D.runs[Number($("other").value)];
  const dots = (name, wanted, paint) => {
    const which = bad.map((b, i) => (b === wanted ? i : -1)).filter((i) => i >= 0);
    return { type: "scatter", mode: "markers", name, x: which.map((i) => BASE.ratios[i]), y: which.map((i) => run.ratios[i]),
      text: which.map((i) => `${D.images[i].name} (${D.images[i].type})`), marker: { color: css(paint), size: 7, opacity: 0.75 },
      hovertemplate: "%{text}<br>%{x:.2f}, %{y:.2f}<extra></extra>" };
  };
  const dash = { color: css("--fg"), width: 1, dash: "dash" };
  Plotly.react("scatter", [dots("good", false, "--good"), dots("defective", true, "--bad")],
    layout("Score / threshold: above 1 is anomalous", BASE.name, run.name, { more: {
      legend: { x: 0, xanchor: "left", y: 1, yanchor: "top", bgcolor: "rgba(0,0,0,0)" }, shapes: [
      { type: "line", x0: 1, x1: 1, yref: "paper", y0: 0, y1: 1, line: dash },
      { type: "line", y0: 1, y1: 1, xref: "paper", x0: 0, x1: 1, line: dash }] } }), CONFIG);
}
function showDisagreements() {
  const run = D.runs[Number($("other").value)];
  const word = (decision) => (decision ? "anomalous" : "good");
  const rows = D.images.map((p, i) => ({ p, i })).filter(({ i }) => BASE.decisions[i] !== run.decisions[i])
    .sort((a, b) => a.p.type.localeCompare(b.p.type) || a.p.name.localeCompare(b.p.name))
    .map(({ p, i }) => [p.name, p.type, word(BASE.decisions[i]), word(run.decisions[i]),
      (bad[i] === run.decisions[i] ? run : BASE).name]);
  $("different").textContent = `${rows.length} of ${D.images.length} images`;
  table("disagreements", ["image", "type", BASE.name, run.name, "who is right"], rows);
}

function draw() { drawForest(); drawCurves(); drawHistograms(); drawImages(); }
$("other").replaceChildren(...OTHERS.map((r, i) => el("option", { value: String(i + 1) }, r.name)));
$("other").addEventListener("change", () => { showDisagreements(); drawImages(); });
metricTable("rows", D.rows, "metric");
if (D.types.length) metricTable("per-type", D.types, "type");
showDisagreements();
startTheme(draw);
