// Inspect: an image by choice, drop, paste or camera; the decision in words; and what the service inspects meanwhile.

import { at, get, picture, query, upload } from "./api.js";
import { camera } from "./camera.js";
import { decisionWords, dropZone, facts, filePicker, h, lazy, number, percent, say, table, when } from "./dom.js";
import { openDetail } from "./detail.js";
import { stage } from "./stage.js";

const RATES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3];
let opacity = 0.8;
let outlines = true;

export async function show(main, state) {
  const model = state.models.find((each) => each.name === state.product);
  let last = null;
  let view = null;
  let rate = "";
  const place = dropZone(h("div", { class: "drop" }), (files) => take(files[0]));
  const result = h("section", { class: "panel", "aria-live": "polite" });
  const feed = h("ul", { class: "cards" });

  async function take(file) {
    if (!file) return;
    try {
      await inspect(file);
      say("");
    } catch (error) {
      say(error);
    }
  }

  async function inspect(file) {
    last = file;
    const found = await upload(at("models", state.product, "inspect") + query({ heat: true, rate }), file);
    view = stage(URL.createObjectURL(file), {
      heat: `data:image/png;base64,${found.heat}`, regions: found.regions, width: found.width, height: found.height,
      alt: `${file.name ?? "camera image"}: ${found.sentence}`, opacity, outlines,
      fallback: () => picture(at("inspections", found.uid, "overlay.png")),
    });
    place.replaceChildren(view.node);
    drawResult(found);
  }

  function drawResult(found) {
    const regions = found.regions.map((region, i) => [
      h("button", { type: "button", onclick: () => view.choose(i), onfocus: () => view.choose(i) }, `Region ${i + 1}`),
      region.box.slice(0, 2).join(", "), `${region.box[2]} × ${region.box[3]}`, number(region.score),
    ]);
    result.replaceChildren(
      h("h2", {}, "Decision"),
      h("p", { class: `decision ${found.decision}` }, decisionWords(found)),
      h("p", {}, `${found.sentence[0].toUpperCase()}${found.sentence.slice(1)}.`),
      facts([
        ["score", `${number(found.score)} (threshold ${number(found.threshold)})`], ["p-value", number(found.p_value)],
        ["promise", `at most ${percent(found.rate)} of good images raise a false alarm`],
        ["version", String(found.version)], ["time", `${(1000 * found.seconds).toFixed(0)} ms`],
      ]),
      regions.length ? table("Regions above the pixel threshold", ["", "x, y", "size", "score"], regions) : "");
  }

  const picker = camera(take);
  const paste = (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (file) take(file);
  };
  document.addEventListener("paste", paste);
  place.replaceChildren(h("p", { class: "quiet" }, "Drop an image here, paste one, or choose one below."));
  result.replaceChildren(h("h2", {}, "Decision"), h("p", { class: "quiet" }, "No image has been inspected in this tab yet."));

  const rates = [...new Set([...RATES, model.rate])].filter((each) => each > 0).sort((a, b) => a - b);
  const rateChoice = h("select", { onchange: () => { rate = rateChoice.value; take(last); } },
    h("option", { value: "" }, `${percent(model.rate)} (as set)`),
    rates.filter((each) => each !== model.rate).map((each) => h("option", { value: each }, percent(each))));
  const controls = h("div", { class: "row" },
    h("label", {}, "Heat map", h("input", { type: "range", min: 0, max: 1, step: 0.05, value: opacity,
      "aria-label": "Opacity of the heat map",
      oninput: (event) => { opacity = Number(event.target.value); view?.setOpacity(opacity); } })),
    h("label", {}, h("input", { type: "checkbox", checked: outlines,
      onchange: (event) => { outlines = event.target.checked; view?.setOutlines(outlines); } }), "Outlines"),
    h("label", {}, "Promised false-alarm rate", rateChoice));

  main.className = "two";
  main.replaceChildren(
    h("section", { class: "panel" }, h("h2", {}, `Inspect ${state.product}`),
      model.active ? null : h("p", { class: "anomalous" }, "No version is active: activate one under “Versions”."),
      place, h("div", { class: "row" }, filePicker("Choose an image", (files) => take(files[0]))), controls, picker.node),
    h("div", {}, result, h("section", { class: "panel" }, h("h2", {}, "What the service inspects"), await lineStatus(), feed)));

  const stop = follow(state.product, feed);
  return () => {
    stop();
    picker.close();
    document.removeEventListener("paste", paste);
  };
}

// The newest inspections, asked for once a second.
function follow(product, feed) {
  let newest = null;
  let ended = false;
  async function ask() {
    try {
      const after = newest ?? undefined;
      const { inspections } = await get(`/v1/history${query({ product, after, limit: 12 })}`);
      if (ended) return;
      if (inspections.length) newest = inspections[0].number;
      for (const row of inspections.reverse()) feed.prepend(card(row));
      while (feed.children.length > 12) feed.lastChild.remove();
    } catch { /* the next look may work */ }
    if (!ended) setTimeout(ask, 1000);
  }
  ask();
  return () => { ended = true; };
}

export function card(row, changed) {
  const words = decisionWords(row);
  return h("li", {}, h("button", { type: "button", class: `card ${row.anomalous ? "bad" : ""}`,
    onclick: () => openDetail(row.uid, changed) },
    row.image ? lazy(at("inspections", row.uid, "thumbnail"), "") : null,
    h("strong", { class: row.decision }, words),
    row.verdict ? h("small", {}, `said to be ${row.verdict}`) : null,
    h("small", {}, row.name), h("small", {}, when(row.at))));
}

async function lineStatus() {
  const { sources, sinks } = await get("/v1/line");
  if (!sources.length && !sinks.length) return h("p", { class: "quiet" }, "No camera or folder is attached to the server.");
  const text = (each) => each.error || (each.connected ? "connected" : "not connected");
  return h("div", {},
    sources.length ? table("Sources", ["name", "product", "judged", "state"],
      sources.map((each) => [each.name, each.product, String(each.judged), each.paused ? "paused" : text(each)])) : null,
    sinks.length ? table("Sinks", ["name", "sent", "waiting", "state"],
      sinks.map((each) => [each.name, String(each.sent), String(each.waiting), each.error || "takes messages"])) : null);
}
