// Versions: which one judges, comparison, shadow mode, golden samples.

import { at, download, get, post, put, query, remove, upload } from "./api.js";
import { button, count, filePicker, h, lazy, percent, say, table, when } from "./dom.js";
import { refreshModels } from "./main.js";

export async function show(main, state) {
  const product = state.product;
  const about = state.models.find((each) => each.name === product);
  const found = await get(at("models", product, "versions"));
  const again = async () => { await refreshModels(); await show(main, state); };
  main.replaceChildren(list(product, found, again), settings(product, about, found, again),
    await golden(product, about, again), compare(product, found));
}

function activation(product, number, again) {
  return button("Activate", async () => {
    try {
      const { golden } = await post(at("models", product, "versions", String(number), "activate"));
      await again();
      const wrong = golden.filter((each) => !each.right).length;
      if (wrong) say(`Version ${number} judges now, but it judges ${wrong} of ${golden.length} golden samples wrong.`);
    } catch (error) {
      const wrong = (error.body?.golden ?? []).filter((each) => !each.right).map((each) => each.note);
      throw wrong.length ? new Error(`${error.message}: ${wrong.join(", ")}`) : error;
    }
  }, { "aria-label": `Activate version ${number}` });
}

function list(product, found, again) {
  const rows = found.versions.map((each) => [
    `${each.number}${each.number === found.active ? " ● active" : ""}${each.number === found.shadow ? " ○ shadow" : ""}`,
    each.note, `${when(each.created)}, ${each.by}`, String(each.summary.good_images ?? ""), percent(each.summary.rate ?? 0),
    h("div", { class: "row" }, each.number === found.active ? null : activation(product, each.number, again),
      each.report ? button("Report", () => download(at("models", product, "versions", String(each.number), "report"),
        `report-${each.number}.html`), { "aria-label": `Report of version ${each.number}` }) : null),
  ]);
  const before = new Set(found.activations.map((each) => each.number));
  return h("section", { class: "panel" }, h("h2", {}, `Versions of ${product}`),
    table("Newest first", ["version", "note", "made", "good images", "promise", ""], rows),
    h("div", { class: "row" }, button("Roll back to the version before", async () => {
      await post(at("models", product, "rollback"));
      await again();
    }, { disabled: before.size < 2 })));
}

function settings(product, about, found, again) {
  const shadow = h("select", {}, h("option", { value: "" }, "none"), found.versions.filter((each) => each.number !== found.active)
    .map((each) => h("option", { value: each.number, selected: each.number === found.shadow }, `version ${each.number}`)));
  const rate = h("input", { type: "number", min: 0.01, max: 99, step: 0.01, value: 100 * about.rate, size: 6 });
  const seen = found.shadow_summary;
  return h("section", { class: "panel" }, h("h2", {}, "Shadow mode and promise"),
    h("p", { class: "quiet" }, "A shadow judges the same images and has no say. Activate it once it has proved itself."),
    h("div", { class: "row" }, h("label", {}, "Shadow", shadow), button("Set shadow", async () => {
      await put(at("models", product, "shadow"), { version: shadow.value ? Number(shadow.value) : null });
      await again();
    })),
    seen ? h("p", {}, `The shadow judged ${count(seen.images, "image")}, raised ${count(seen.alarms, "alarm")} and decided otherwise ${count(seen.differs, "time")}.`) : null,
    h("div", { class: "row" }, h("label", {}, "False alarms among good images, at most (%)", rate), button("Set promise", async () => {
      await put(at("models", product, "settings"), { rate: Number(rate.value) / 100 });
      await again();
    })));
}

async function golden(product, about, again) {
  const samples = await get(at("models", product, "golden"));
  const rule = h("select", { onchange: () => put(at("models", product, "settings"), { golden_rule: rule.value }).catch(say) },
    [["block", "is not activated"], ["warn", "is activated with a warning"]].map(([value, text]) =>
      h("option", { value, selected: value === about.golden_rule }, text)));
  const must = h("select", {}, h("option", { value: "true" }, "anomalous"), h("option", { value: "false" }, "good"));
  const add = (files) => Promise.all(files.map((file) =>
    upload(at("models", product, "golden", "upload") + query({ anomalous: must.value, note: file.name }), file))).then(again).catch(say);
  return h("section", { class: "panel" }, h("h2", {}, "Golden samples"),
    h("p", { class: "quiet" }, "Images whose decision is known. They are judged before each activation."),
    h("div", { class: "row" }, h("label", {}, "A version that judges one wrong", rule)),
    h("div", { class: "row" }, h("label", {}, "Add an image that must be", must), filePicker("Choose an image", add, true)),
    h("ul", { class: "cards" }, samples.map((each) => h("li", {}, h("div", { class: "card" },
      lazy(at("models", product, "golden", String(each.id), "thumbnail"), each.note),
      h("strong", {}, `must be ${each.anomalous ? "anomalous" : "good"}`), h("small", {}, each.note),
      button("Remove", async () => { await remove(at("models", product, "golden", String(each.id))); await again(); },
        { "aria-label": `Remove golden sample ${each.note}` }))))));
}

function compare(product, found) {
  const choice = (label, chosen) => {
    const select = h("select", {}, found.versions.map((each) =>
      h("option", { value: each.number, selected: each.number === chosen }, `version ${each.number}`)));
    return [h("label", {}, label, select), select];
  };
  const [first, a] = choice("Compare", found.active ?? 1);
  const [second, b] = choice("with", found.versions[0]?.number);
  const place = h("div", { "aria-live": "polite" });
  const words = (each) => (each.golden.length ? `${each.golden.filter((g) => g.right).length} of ${each.golden.length} right` : "none");
  return h("section", { class: "panel" }, h("h2", {}, "Compare versions"), h("div", { class: "row" }, first, second,
    button("Compare", async () => {
      const two = await get(at("models", product, "compare") + query({ a: a.value, b: b.value }));
      const both = [two.a, two.b];
      place.replaceChildren(table("Beside each other", ["", ...both.map((each) => `version ${each.version}`)], [
        ["recipe", ...both.map((each) => each.summary.recipe)],
        ["good images", ...both.map((each) => String(each.summary.good_images))],
        ["learned defects", ...both.map((each) => String(each.summary.defects ?? 0))],
        ["promise", ...both.map((each) => percent(each.summary.rate))],
        ["golden samples", ...both.map(words)],
        ["as a shadow", ...both.map((each) => (each.shadow.images ? `${count(each.shadow.images, "image")}, ${each.shadow.differs} differ` : "not yet"))],
      ]));
    })), place);
}
