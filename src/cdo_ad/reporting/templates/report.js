"use strict";
const state = { category: 0, threshold: D.categories[0].threshold, shown: 24 };
const C = () => D.categories[state.category];
const I = () => D.images.filter((p) => p.category === C().name);
const calibrated = () => state.threshold === C().threshold;

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
const interval = (r) => (r.n ? `${percent(r.low)} to ${percent(r.high)} (95 %)` : "there are none");

// ---- decisions: the run's own at the calibrated threshold; what would be elsewhere
const called = (p) => (calibrated() ? p.called : p.score > state.threshold);
const wrongness = (p) => (p.anomalous && !called(p) ? "missed" : !p.anomalous && called(p) ? "alarm" : "");
function judged(images) {
  const count = (list) => list.filter(called).length;
  const good = images.filter((p) => !p.anomalous), bad = images.filter((p) => p.anomalous);
  return { alarms: rate(count(good), good.length), found: rate(count(bad), bad.length) };
}

function expectation() {
  const n = C().calibration.length, above = C().calibration.filter((s) => s > state.threshold).length;
  if (!calibrated())
    return card("expected false alarms", "≤ " + percent((above + 1) / (n + 1)), `${above} of ${n} calibration images score higher`);
  if (C().guaranteed) return card("guaranteed false alarms", "≤ " + percent(D.rate), `on average, from ${n} calibration images`);
  return card("expected false alarms", "≤ " + percent(1 / (n + 1)),
    `${n} calibration images are too few to guarantee ${percent(D.rate)}`);
}
function showDecision() {
  const { alarms, found } = judged(I());
  const cards = [card("threshold", number(state.threshold, 4), calibrated() ? "calibrated" : "moved by hand"), expectation()];
  const where = D.labelled ? "good test images" : "good images of this data set";
  cards.push(card("false alarms", percent(alarms.value), `${alarms.count} of ${alarms.n} ${where}; ${interval(alarms)}`, "false-alarms"));
  if (D.labelled && found.n)
    cards.push(card("defects found", percent(found.value), `${found.count} of ${found.n} defects; ${interval(found)}`, "detections"),
      card("missed defects", String(found.n - found.count), "called good", "missed-number"));
  $("cards").replaceChildren(...cards);
  $("threshold-value").textContent = number(state.threshold, 4);
  $("promise").textContent = "An image is anomalous when its score is larger than the threshold. Move the threshold to see what " +
    `would change. The run keeps its calibrated threshold of ${number(C().threshold, 4)}.`;
}
function showOverview() {
  if (D.categories.length < 2) return;
  const words = D.labelled ? ["category", "good", "defects", "threshold", "false alarms (95 %)", "defects found (95 %)", "image AUROC",
    "image AP", "pixel AP", "AU-PRO 0.3"] : ["category", "good", "threshold", "false alarms (95 %)"];
  const row = (name, threshold, m, images) => {
    const good = images.filter((p) => !p.anomalous), alarms = rate(good.filter((p) => p.called).length, good.length);
    if (!D.labelled) return [name, good.length, threshold, withEnds(alarms)];
    return [name, m.n.good, m.n.anomalous, threshold, withEnds(m.decision.false_alarm_rate), withEnds(m.decision.detection_rate),
      number(m.image.auroc), number(m.image.ap), number(m.pixel.ap), number(m.pixel.aupro_30)];
  };
  const rows = D.categories.map((c) => row(c.name, number(c.threshold, 4), c.metrics, D.images.filter((p) => p.category === c.name)));
  rows.push(row("all", "", D.metrics, D.images));
  table("categories", words, rows, (r) => r[0] === C().name);
  $("categories").querySelectorAll("tbody tr").forEach((line, i) => {
    if (i >= D.categories.length) return;
    line.classList.add("choice");
    line.addEventListener("click", () => { choose(i); draw(); });
  });
}
function showTypes() {
  if (!D.labelled) return;
  const rows = [["all", C().metrics], ...Object.entries(C().metrics.types)].map(([name, f]) => {
    const { found } = judged(name === "all" ? I() : I().filter((p) => p.type === name));
    return [name, f.n.anomalous, withEnds(found), number(f.image.auroc), number(f.image.ap), number(f.image.f1max), number(f.pixel.auroc), number(f.pixel.ap),
      number(f.pixel.f1max), number(f.pixel.aupro_30), number(f.pixel.aupro_05)];
  });
  table("per-type", ["type", "images", "found (95 %)", "image AUROC", "AP", "F1max", "pixel AUROC", "AP", "F1max",
    "AU-PRO 0.3", "AU-PRO 0.05"], rows);
  for (const [kind, list, counter] of [["missed", "missed", "missed-count"], ["alarm", "alarms", "alarm-count"]]) {
    const wrong = I().filter((p) => wrongness(p) === kind);
    $(counter).textContent = `(${wrong.length})`;
    $(list).replaceChildren(...(wrong.length ? [] : [el("li", {}, "none")]), ...wrong.map((p) => {
      const link = el("a", { href: "#gallery" }, p.name);
      link.addEventListener("click", (event) => { event.preventDefault(); zoom(p); });
      return el("li", {}, link, kind === "missed" ? ` (${p.type}, score ${number(p.score, 3)})` : ` (score ${number(p.score, 3)})`);
    }));
  }
}
function showCosts() {
  if (!D.labelled) return;
  const rows = C().costs.map((c) => c.missing
    ? [percent(c.rate), `needs ${c.missing} more good images`, "", ""]
    : [percent(c.rate), number(c.threshold, 4), withEnds(c.false_alarm_rate), withEnds(c.detection_rate)]);
  table("costs", ["guaranteed rate", "threshold", "false alarms (95 %)", "defects found (95 %)"], rows,
    (row) => row[0] === percent(D.rate));
}
function showRanks() {
  if (!D.labelled) return;
  const m = C().metrics;
  $("ranks").replaceChildren(
    card("image AUROC", number(m.image.auroc), `AP ${number(m.image.ap)}, F1max ${number(m.image.f1max)}`),
    card("pixel AUROC", number(m.pixel.auroc), `AP ${number(m.pixel.ap)}, F1max ${number(m.pixel.f1max)}`),
    card("AU-PRO 0.3", number(m.pixel.aupro_30), "mean overlap of regions, false-positive rate to 30 %"),
    card("AU-PRO 0.05", number(m.pixel.aupro_05), "the same to 5 %"));
}

// ---- charts
const line = () => ({ type: "line", x0: state.threshold, x1: state.threshold, yref: "paper", y0: 0, y1: 1,
  line: { color: css("--fg"), width: 2, dash: "dash" } });
function drawHistogram() {
  const scores = I().map((p) => p.score).concat(C().calibration);
  const low = Math.min(...scores), high = Math.max(...scores);
  const bins = { start: low, end: high + (high - low) / 40 + 1e-9, size: (high - low) / 40 || 1 };
  const bars = (name, x, colour) => ({ type: "histogram", name, x, xbins: bins, autobinx: false, opacity: 0.65, marker: { color: colour } });
  const of = (wanted) => I().filter((p) => p.anomalous === wanted).map((p) => p.score);
  const traces = [bars("good", of(false), css("--good"))];
  if (of(true).length) traces.push(bars("defective", of(true), css("--bad")));
  traces.push({ type: "scatter", mode: "markers", name: "calibration", x: C().calibration, y: C().calibration.map(() => 0),
    marker: { symbol: "line-ns-open", size: 12, color: css("--fg") }, hoverinfo: "x" });
  Plotly.react("histogram", traces, layout("Image scores", "image score", "images", { more: { barmode: "overlay", shapes: [line()] } }), CONFIG);
}
function drawCurves() {
  if (!D.labelled) return;
  const trace = (name, key, colour) => C().curves[key] && { type: "scatter", mode: "lines", name, ...C().curves[key], line: { color: colour, width: 2 } };
  const both = (a, b) => [trace("images", a, css("--accent")), trace("pixels", b, css("--bad"))].filter(Boolean);
  const unit = { range: [0, 1.02] };
  const low = { x: 1, xanchor: "right", y: 0, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" };
  const charts = [
    ["roc", both("image_roc", "pixel_roc"), layout("ROC", "false-positive rate", "true-positive rate",
      { xaxis: unit, yaxis: unit, more: { legend: low, showlegend: true } })],
    ["pr", both("image_pr", "pixel_pr"), layout("Precision-recall", "recall", "precision", { xaxis: unit, yaxis: unit, more: { showlegend: false } })],
    ["pro", [trace("pixels", "pixel_pro", css("--bad"))].filter(Boolean), layout("PRO: overlap of regions", "false-positive rate of pixels",
      "mean overlap of a region", { xaxis: { range: [0, 0.305] }, yaxis: unit })],
  ];
  for (const [id, traces, form] of charts) {
    $(id).hidden = !traces.length;
    if (traces.length) Plotly.react(id, traces, form, CONFIG);
  }
}
const SOURCES = { real: "real defects", synthetic: "white noise" };
// four bins as one: 200 are too fine to look at
const joined = (values) => Array.from({ length: Math.ceil(values.length / 4) }, (_, k) =>
  values.slice(4 * k, 4 * k + 4).reduce((a, b) => a + b, 0));
function drawDistributions() {
  const levels = C().distributions[$("source").value] || {};
  const box = $("distributions"), names = Object.keys(levels);
  if (box.children.length !== names.length)
    box.replaceChildren(...names.map((name, i) => el("div", { class: "chart", id: `distribution-${i}` })));
  names.forEach((name, i) => {
    const level = levels[name], x = level.edges.slice(2).filter((_, k) => k % 4 === 0);
    const area = (label, y, colour) => ({ type: "scatter", mode: "lines", fill: "tozeroy", name: label, x, y, line: { color: colour, width: 1.5, shape: "hvh" } });
    Plotly.react(`distribution-${i}`, [area("normal", joined(level.normal), css("--good")), area("anomalous", joined(level.anomalous), css("--bad"))],
      layout(`${name}<br><sub>margin ${number(level.margin)}, overlap ${number(level.overlap)}</sub>`, "value of a pixel", "share of pixels",
        { more: { margin: { l: 52, r: 14, t: 64, b: 44 } } }), CONFIG);
  });
}
function showMargins() {
  const rows = [];
  for (const [source, levels] of Object.entries(C().distributions))
    for (const [name, l] of Object.entries(levels))
      rows.push([name, SOURCES[source], number(l.margin, 4), number(l.overlap, 4), number(l.mean_normal, 4), number(l.mean_anomalous, 4)]);
  table("margins", ["branch", "anomalies", "margin", "overlap", "mean of normal pixels", "of anomalous pixels"], rows);
  const there = Object.keys(C().distributions).filter((s) => Object.keys(C().distributions[s]).length);
  $("branches").hidden = !there.length;
  $("source").replaceChildren(...there.map((s) => el("option", { value: s }, SOURCES[s])));
  $("source-row").hidden = there.length < 2;
  const power = C().power;
  $("power").replaceChildren(...(power ? [card("synthetic anomalies found", percent(power.value),
    `${power.count} of ${power.n} ${D.noise_on}, with white noise; ${interval(power)}`)] : []));
}
function drawTraining() {
  if (!D.training.length) { $("training").hidden = true; return; }
  const x = D.training.map((r) => r.epoch);
  Plotly.react("loss", [
    { type: "scatter", mode: "lines+markers", name: "loss", x, y: D.training.map((r) => r.loss), line: { color: css("--accent") } },
    { type: "scatter", mode: "lines", name: "learning rate", x, y: D.training.map((r) => r.lr), yaxis: "y2", line: { color: css("--soft"), dash: "dot" } },
  ], layout("Loss and learning rate", "epoch", "loss", { xaxis: { dtick: x.length > 20 ? undefined : 1 },
    more: { margin: { l: 52, r: 64, t: 40, b: 44 }, yaxis2: { overlaying: "y", side: "right", automargin: true, title: { text: "learning rate" }, showgrid: false } } }), CONFIG);
}

// ---- gallery
function chosen() {
  const what = $("filter-what").value, type = $("filter-type").value;
  const list = I().filter((p) => p.image && (type === "all" || p.type === type) &&
    (what === "all" || (what === "defect" ? p.anomalous : what === "good" ? !p.anomalous : wrongness(p) === what)));
  return $("sort").value === "up" ? list.reverse() : list;
}
const images = (p) => ["image", "heat", "mask"].filter((k) => p[k]);
function imageCard(p) {
  const kind = wrongness(p);
  const trio = el("button", { class: "trio", type: "button", "aria-label": `enlarge ${p.name}` },
    ...images(p).map((k) => el("img", { src: p[k], alt: "" })));
  trio.addEventListener("click", () => zoom(p));
  const tag = kind ? el("span", { class: "tag" }, kind === "missed" ? "missed: " : "false alarm: ") : "";
  return el("figure", { class: kind }, trio, el("figcaption", {}, tag, p.name,
    el("small", {}, `${p.type} · score ${number(p.score, 3)} · p ${number(p.p, 3)}`), el("small", {}, p.line)));
}
function showGallery() {
  const list = chosen();
  $("cards-images").replaceChildren(...list.slice(0, state.shown).map(imageCard));
  const without = I().filter((p) => !p.image).length;
  $("shown").textContent = `${list.length} ${list.length === 1 ? "image" : "images"}` + (without ? ` (${without} more are in the metrics only)` : "");
  $("more").hidden = list.length <= state.shown;
}
function zoom(p) {
  const names = { image: "image", heat: "heat map and regions", mask: "true mask" };
  $("zoom-body").replaceChildren(el("h3", {}, p.name), el("p", {}, `${p.type}, score ${number(p.score, 4)}. ${p.line}.`),
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
function choose(index) {
  state.category = index;
  state.threshold = C().threshold;
  state.shown = 24;
  $("category").value = String(index);
  for (const word of document.querySelectorAll(".of")) word.textContent = D.categories.length > 1 ? `– ${C().name}` : "";
  const scores = I().map((p) => p.score).concat(C().calibration, C().threshold);
  const low = Math.min(...scores), high = Math.max(...scores);
  $("threshold").min = low - (high - low) * 0.02;
  $("threshold").max = high + (high - low) * 0.02;
  $("threshold").value = C().threshold;
  const types = [...new Set(I().map((p) => p.type))].sort();
  $("filter-type").replaceChildren(...["all", ...types].map((t) => el("option", { value: t }, t)));
  showOverview(); showDecision(); showCosts(); showRanks(); showTypes(); showMargins(); showGallery();
}
$("category").replaceChildren(...D.categories.map((c, i) => el("option", { value: String(i) }, c.name)));
$("category").addEventListener("change", () => { choose(Number($("category").value)); draw(); });
$("threshold").addEventListener("input", () => { state.threshold = Number($("threshold").value); moved(); });
$("reset").addEventListener("click", () => { state.threshold = C().threshold; $("threshold").value = C().threshold; moved(); });
for (const id of ["filter-what", "filter-type", "sort"]) $(id).addEventListener("change", () => { state.shown = 24; showGallery(); });
$("more").addEventListener("click", () => { state.shown += 48; showGallery(); });
$("source").addEventListener("change", drawDistributions);
$("failures").replaceChildren(...D.failures.map((f) => el("p", {}, "not judged: " + f)));
choose(0);
startTheme(draw);
