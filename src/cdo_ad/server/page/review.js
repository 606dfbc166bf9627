// Review: the history with filters, its export, and learning from corrections.

import { at, download, get, post, query } from "./api.js";
import { button, count, h, table, number } from "./dom.js";
import { card } from "./inspect.js";
import { watchJob } from "./job.js";
import { refreshModels } from "./main.js";

export async function show(main, state) {
  const form = h("form", { class: "row", onsubmit: (event) => { event.preventDefault(); load(); } });
  const choice = (name, label, options) => h("label", {}, label,
    h("select", { name, onchange: () => load() }, options.map(([value, text]) => h("option", { value }, text))));
  const day = (name, label) => h("label", {}, label, h("input", { type: "datetime-local", name, onchange: () => load() }));
  form.append(
    choice("decision", "Decision", [["", "all"], ["anomalous", "anomalous"], ["good", "good"]]),
    choice("verdict", "Corrections", [["", "all"], ["any", "corrected"], ["none", "not corrected"],
      ["false alarm", "false alarms"], ["missed", "missed"]]),
    day("since", "From"), day("until", "To"));
  const told = h("p", { role: "status" });
  const cards = h("ul", { class: "cards" });
  const more = button("Older ones", () => load(true));
  const learning = h("section", { class: "panel" });
  let oldest = null;

  function filters() {
    const values = Object.fromEntries(new FormData(form));
    for (const name of ["since", "until"]) if (values[name]) values[name] = new Date(values[name]).getTime() / 1000;
    return { product: state.product, ...values };
  }

  async function load(older = false) {
    const before = older ? oldest : undefined;
    const found = await get(`/v1/history${query({ ...filters(), limit: 40, before })}`);
    if (!older) cards.replaceChildren();
    cards.append(...found.inspections.map((row) => card(row, changed)));
    oldest = found.inspections.at(-1)?.number ?? oldest;
    more.hidden = found.inspections.length < 40;
    told.textContent = `${count(found.total, "inspection")}, ${found.anomalous} anomalous, ${found.corrected} corrected.`;
  }

  async function changed() {
    await load();
    await drawLearning();
  }

  async function drawLearning() {
    if (!state.may("engineer")) return learning.remove();
    const waiting = await get(at("models", state.product, "corrections"));
    const alarms = waiting.filter((each) => each.verdict === "false alarm").length;
    const epochs = h("input", { type: "number", min: 0, max: 20, value: 0, size: 3 });
    const place = h("div", {});
    learning.replaceChildren(h("h2", {}, "Learn from corrections"),
      h("p", {}, waiting.length ? `${count(alarms, "false alarm")} and ${count(waiting.length - alarms, "missed defect")} wait to be learned.`
        : "No correction waits. Open an inspection and say that it was a false alarm, or draw what was missed."),
      h("div", { class: "row" }, h("label", {}, "Passes over the networks (0 is quick)", epochs),
        button("Make a new version", async () => {
          const job = await post(at("models", state.product, "adapt"), { epochs: Number(epochs.value) });
          watchJob(place, job, (done) => adapted(place, state, done));
        }, { class: "main", disabled: !waiting.length })),
      place);
  }

  main.replaceChildren(
    h("section", { class: "panel" }, h("h2", {}, `History of ${state.product}`), form,
      h("div", { class: "row" }, told, button("Export as CSV", () => download(`/v1/history.csv${query(filters())}`, "inspections.csv"))),
      cards, more),
    learning);
  await load();
  await drawLearning();
}

const GROUPS = { "new good": "corrected false alarms", "new bad": "corrected misses", good: "the run's own good images" };

function adapted(place, state, job) {
  const { version, changes, promise } = job.result;
  place.append(
    table("Before and after", ["images", "count", "alarms before", "alarms after", "score before", "score after"],
      changes.map((c) => [GROUPS[c.group] ?? c.group, String(c.images), String(c.alarms_before), String(c.alarms_after),
        number(c.score_before), number(c.score_after)])),
    h("p", { class: "quiet" }, "Scores are medians; 1 is the threshold."), ...promise.map((line) => h("p", {}, line)),
    button(`Activate version ${version}`, async () => {
      await post(at("models", state.product, "versions", String(version), "activate"));
      await refreshModels();
      place.append(h("p", { role: "status" }, `Version ${version} judges now.`));
    }, { class: "main" }));
}
