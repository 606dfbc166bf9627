"use strict";
const state = { threshold: D.threshold, shown: 24 };

// ---- binomial interval (Clopper-Pearson), as the package computes it
function upperEnd(k, n, tail) {
  if (k === n) return 1;
  const logs = [0];
  for (let i = 1; i <= k; i++) logs.push(logs[i - 1] + Math.log((n + 1 - i) / i));
  let low = k / n, high = 1;
  for (let step = 0; step < 60; step++) {
    const p = (low + high) / 2;
    let below = 0;
    for (let i = 0; i <= k; i++) below += Math.exp(logs[i] + i * Math.log(p) + (n - i) * Math.log1p(-p));
    if (below > tail) low = p; else high = p;
  }
  return (low + high) / 2;
}
function rate(count, n) {
  if (!n) return { value: NaN, low: 0, high: 1, count, n };
  return { value: count / n, low: 1 - upperEnd(n - count, n, 0.025), high: upperEnd(count, n, 0.025), count, n };
}
const interval = (r) => (r.n ? `${percent(r.low)} to ${percent(r.high)} (95 %)` : "none there");

// ---- what the threshold makes of the images
const wrongness = (p) =>
  p.anomalous && p.score <= state.threshold ? "missed" : !p.anomalous && p.score > state.threshold ? "alarm" : "";
function judged(images) {
  const count = (list) => list.filter((p) => p.score > state.threshold).length;
  const good = images.filter((p) => !p.anomalous), bad = images.filter((p) => p.anomalous);
  return { alarms: rate(count(good), good.length), found: rate(count(bad), bad.length) };
}

function showDecision() {
  const { alarms, found } = judged(D.images);
  const cards = [card("threshold", number(state.threshold, 4), state.threshold === D.threshold ? "calibrated" : "moved by hand")];
  const above = D.calibration.filter((s) => s > state.threshold).length;
  if (state.threshold === D.threshold)
    cards.push(card("promised false alarms", "≤ " + percent(D.rate), `on average, from ${D.calibration.length} held-out good images`));
  else
    cards.push(card("expected false alarms", "≤ " + percent((above + 1) / (D.calibration.length + 1)),
      `${above} of ${D.calibration.length} held-out good images lie above`));
  const where = D.labelled ? "good test images" : "good images of this data set";
  cards.push(card("false alarms", percent(alarms.value), `${alarms.count} of ${alarms.n} ${where}; ${interval(alarms)}`, "false-alarms"));
  if (D.labelled && found.n)
    cards.push(card("defects found", percent(found.value), `${found.count} of ${found.n} defects; ${interval(found)}`, "detections"),
      card("missed", String(found.n - found.count), "defects called good", "missed-number"));
  $("cards").replaceChildren(...cards);
  $("threshold-value").textContent = number(state.threshold, 4);
  $("promise").textContent = `An image is called anomalous when its score is larger than the threshold. ` +
    `Move it to see what would change; the run keeps its calibrated threshold of ${number(D.threshold, 4)}.`;
}
function showTypes() {
  if (!D.labelled) return;
  const rows = [["all", D.metrics], ...Object.entries(D.metrics.per_type)].map(([name, f]) => {
    const { found } = judged(name === "all" ? D.images : D.images.filter((p) => p.type === name));
    return [name, f.n.anomalous, percent(found.value), found.n ? `${percent(found.low)} – ${percent(found.high)}` : "–",
      number(f.image.auroc), number(f.image.ap), number(f.image.f1max), number(f.pixel.auroc), number(f.pixel.ap),
      number(f.pixel.f1max), number(f.pixel["aupro_0.3"]), number(f.pixel["aupro_0.05"])];
  });
  table("per-type", ["type", "images", "found", "95 %", "image AUROC", "AP", "F1max", "pixel AUROC", "AP", "F1max",
    "AU-PRO 0.3", "AU-PRO 0.05"], rows);
  for (const [kind, list, counter] of [["missed", "missed", "missed-count"], ["alarm", "alarms", "alarm-count"]]) {
    const wrong = D.images.filter((p) => wrongness(p) === kind);
    $(counter).textContent = `(${wrong.length})`;
    $(list).replaceChildren(...wrong.map((p) => {
      const link = el("a", { href: "#gallery" }, p.name);
      link.addEventListener("click", (event) => { event.preventDefault(); zoom(p); });
      return el("li", {}, link, ` ${p.type}, score ${number(p.score, 3)}`);
    }));
  }
}
function showCosts() {
  if (!D.labelled) return;
  const rows = D.costs.map((c) => c.missing
    ? [percent(c.rate), `needs ${c.missing} more good images`, "", "", "", ""]
    : [percent(c.rate), number(c.threshold, 4), percent(c.false_alarm_rate.value),
      `${percent(c.false_alarm_rate.low)} – ${percent(c.false_alarm_rate.high)}`, percent(c.detection_rate.value),
      c.detection_rate.n ? `${percent(c.detection_rate.low)} – ${percent(c.detection_rate.high)}` : "–"]);
  table("costs", ["promised rate", "threshold", "false alarms measured", "95 %", "defects found", "95 %"], rows,
    (row) => row[0] === percent(D.rate));
}
function showRanks() {
  if (!D.labelled) return;
  const f = D.metrics;
  $("ranks").replaceChildren(
    card("image AUROC", number(f.image.auroc), `AP ${number(f.image.ap)}, F1max ${number(f.image.f1max)}`),
    card("pixel AUROC", number(f.pixel.auroc), `AP ${number(f.pixel.ap)}, F1max ${number(f.pixel.f1max)}`),
    card("AU-PRO 0.3", number(f.pixel["aupro_0.3"]), "regions found, false positives up to 30 %"),
    card("AU-PRO 0.05", number(f.pixel["aupro_0.05"]), "false positives up to 5 %"));
}

const line = () => ({ type: "line", x0: state.threshold, x1: state.threshold, yref: "paper", y0: 0, y1: 1,
  line: { color: css("--fg"), width: 2, dash: "dash" } });
function drawHistogram() {
  const all = D.images.map((p) => p.score).concat(D.calibration);
  const low = Math.min(...all, D.threshold), high = Math.max(...all, D.threshold);
  const bins = { start: low, end: high + (high - low) / 40 + 1e-9, size: (high - low) / 40 || 1 };
  const bars = (name, x, colour) => ({ type: "histogram", name, x, xbins: bins, autobinx: false, opacity: 0.65, marker: { color: colour } });
  const traces = [];
  if (D.labelled) {
    traces.push(bars("good", D.images.filter((p) => !p.anomalous).map((p) => p.score), css("--good")));
    const bad = D.images.filter((p) => p.anomalous);
    if (bad.length) traces.push(bars("defective", bad.map((p) => p.score), css("--bad")));
  } else traces.push(bars("good images", D.images.map((p) => p.score), css("--good")));
  traces.push({ type: "scatter", mode: "markers", name: "calibration", x: D.calibration, y: D.calibration.map(() => 0),
    marker: { symbol: "line-ns-open", size: 12, color: css("--fg") }, hoverinfo: "x" });
  Plotly.react("histogram", traces, layout("Scores", "image score", "images", { more: { barmode: "overlay", shapes: [line()] } }), CONFIG);
}
function drawCurves() {
  if (!D.labelled) return;
  const trace = (name, key, colour) => D.curves[key] && { type: "scatter", mode: "lines", name, ...D.curves[key], line: { color: colour, width: 2 } };
  const both = (a, b) => [trace("images", a, css("--accent")), trace("pixels", b, css("--bad"))].filter(Boolean);
  const unit = { range: [0, 1.02] };
  Plotly.react("roc", both("image_roc", "pixel_roc"), layout("ROC", "false-positive rate", "true-positive rate", { xaxis: unit, yaxis: unit, more: { legend: { x: 1, xanchor: "right", y: 0, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" } } }), CONFIG);
  Plotly.react("pr", both("image_pr", "pixel_pr"), layout("Precision-recall", "recall", "precision", { xaxis: unit, yaxis: unit, more: { showlegend: false } }), CONFIG);
  Plotly.react("pro", [trace("pixels", "pixel_pro", css("--bad"))].filter(Boolean),
    layout("PRO: regions found", "false-positive rate of pixels", "mean overlap of a region", { xaxis: { range: [0, 0.305] }, yaxis: unit }), CONFIG);
}
const SOURCES = { real: "real defects", synthetic: "white noise on held-out good images" };
function drawDistributions() {
  const source = $("source").value, levels = D.distributions[source] || {};
  const box = $("distributions");
  const names = Object.keys(levels);
  if (box.children.length !== names.length)
    box.replaceChildren(...names.map((name, i) => el("div", { class: "chart", id: `distribution-${i}` })));
  names.forEach((name, i) => {
    const level = levels[name], x = level.edges.slice(0, -1).map((e, k) => (e + level.edges[k + 1]) / 2);
    const area = (label, y, colour) => ({ type: "scatter", mode: "lines", fill: "tozeroy", name: label, x, y, line: { color: colour, width: 1.5, shape: "hvh" } });
    Plotly.react(`distribution-${i}`, [area("normal", level.normal, css("--good")), area("anomalous", level.anomalous, css("--bad"))],
      layout(`${name}<br><sub>margin ${number(level.margin)}, overlap ${number(level.overlap)}</sub>`, "discrepancy", "share of pixels",
        { more: { margin: { l: 52, r: 14, t: 64, b: 44 } } }), CONFIG);
  });
}
function showMargins() {
  const rows = [];
  for (const [source, levels] of Object.entries(D.distributions))
    for (const [name, l] of Object.entries(levels))
      rows.push([name, SOURCES[source], number(l.margin, 4), number(l.overlap, 4), number(l.mean_normal, 4), number(l.mean_anomalous, 4)]);
  table("margins", ["level", "anomalies", "margin", "overlap", "mean normal", "mean anomalous"], rows);
  const there = Object.keys(D.distributions).filter((s) => Object.keys(D.distributions[s]).length);
  $("source").replaceChildren(...there.map((s) => el("option", { value: s }, SOURCES[s])));
  $("source-row").hidden = there.length < 2;
  if (D.power)
    $("power").replaceChildren(card("synthetic anomalies found", percent(D.power.value),
      `${D.power.count} of ${D.power.n} held-out good images with white noise; ${interval(D.power)}`));
}
function drawTraining() {
  if (!D.training.length) { $("training").hidden = true; return; }
  const x = D.training.map((r) => r.epoch);
  Plotly.react("loss", [
    { type: "scatter", mode: "lines+markers", name: "loss", x, y: D.training.map((r) => r.loss), line: { color: css("--accent") } },
    { type: "scatter", mode: "lines", name: "learning rate", x, y: D.training.map((r) => r.lr), yaxis: "y2", line: { color: css("--soft"), dash: "dot" } },
  ], layout("Training", "epoch", "loss", { xaxis: { dtick: x.length > 20 ? undefined : 1 },
    more: { margin: { l: 52, r: 64, t: 40, b: 44 }, yaxis2: { overlaying: "y", side: "right", automargin: true, title: { text: "learning rate" }, showgrid: false } } }), CONFIG);
}

// ---- gallery
function chosen() {
  const what = $("filter-what").value, type = $("filter-type").value;
  const list = D.images.filter((p) => p.image && (type === "all" || p.type === type) &&
    (what === "all" || (what === "defect" ? p.anomalous : what === "good" ? !p.anomalous : wrongness(p) === what)));
  return $("sort").value === "up" ? list.slice().reverse() : list;
}
const images = (p) => ["image", "heat", "mask"].filter((k) => p[k]);
function imageCard(p) {
  const kind = wrongness(p);
  const trio = el("button", { class: images(p).length === 2 ? "trio two" : "trio", type: "button", "aria-label": "enlarge" },
    ...images(p).map((k) => el("img", { src: p[k], alt: k })));
  trio.addEventListener("click", () => zoom(p));
  const tag = kind ? el("span", { class: "tag" }, kind === "missed" ? "missed: " : "false alarm: ") : "";
  return el("figure", { class: kind }, trio, el("figcaption", {}, tag, p.name,
    el("small", {}, `${p.type} · score ${number(p.score, 3)} · p ${number(p.p, 3)}`), el("small", {}, p.line)));
}
function showGallery() {
  const list = chosen();
  $("cards-images").replaceChildren(...list.slice(0, state.shown).map(imageCard));
  const without = D.images.length - D.images.filter((p) => p.image).length;
  $("shown").textContent = `${list.length} images` + (without ? ` (${without} more are in the figures only)` : "");
  $("more").hidden = list.length <= state.shown;
}
function zoom(p) {
  const names = { image: "image", heat: "heat map and regions", mask: "true mask" };
  $("zoom-body").replaceChildren(el("h3", {}, `${p.name} – ${p.type}, score ${number(p.score, 4)}`), el("p", {}, p.line),
    ...images(p).map((k) => el("figure", {}, el("img", { src: p[k], alt: names[k] }), el("figcaption", {}, names[k]))));
  $("zoom").showModal();
}
$("zoom").addEventListener("click", (event) => { if (event.target === $("zoom")) $("zoom").close(); });

// ---- events
let pending = 0;
function moved() {
  showDecision();
  if (pending) return;
  pending = requestAnimationFrame(() => {
    pending = 0;
    Plotly.relayout("histogram", { shapes: [line()] });
    showTypes();
    showGallery();
  });
}
function draw() { drawHistogram(); drawCurves(); drawDistributions(); drawTraining(); }
function start() {
  const scores = D.images.map((p) => p.score).concat(D.calibration, D.threshold);
  const low = Math.min(...scores), high = Math.max(...scores);
  $("threshold").min = low - (high - low) * 0.02;
  $("threshold").max = high + (high - low) * 0.02;
  $("threshold").value = D.threshold;
  $("threshold").addEventListener("input", () => { state.threshold = Number($("threshold").value); moved(); });
  $("reset").addEventListener("click", () => { state.threshold = D.threshold; $("threshold").value = D.threshold; moved(); });
  const types = [...new Set(D.images.map((p) => p.type))].sort();
  $("filter-type").replaceChildren(...["all", ...types].map((t) => el("option", { value: t }, t)));
  for (const id of ["filter-what", "filter-type", "sort"]) $(id).addEventListener("change", () => { state.shown = 24; showGallery(); });
  $("more").addEventListener("click", () => { state.shown += 48; showGallery(); });
  $("source").addEventListener("change", drawDistributions);
  $("failures").replaceChildren(...D.failures.map((f) => el("p", {}, "not judged: " + f)));
  showDecision(); showCosts(); showRanks(); showTypes(); showMargins(); showGallery();
  startTheme(draw);
}
start();
