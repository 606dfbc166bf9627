// One inspection in a dialog: its image and heat map, and a person's word on the decision.

import { at, get, picture, post, put, remove } from "./api.js";
import { $, button, decisionWords, facts, h, number, percent, say, when } from "./dom.js";
import { state } from "./main.js";
import { boxes, stage } from "./stage.js";

export async function openDetail(uid, changed = () => {}) {
  try {
    await draw(await get(at("inspections", uid)), changed);
  } catch (error) {
    say(error);
  }
}

async function draw(row, changed) {
  const dialog = $("#detail");
  const kept = row.image
    ? await Promise.all([picture(at("inspections", row.uid, "image")), picture(at("inspections", row.uid, "heat.png"))])
    : null;
  const view = kept && stage(kept[0], { heat: kept[1], regions: row.regions, width: row.width, height: row.height,
    alt: `${row.name}: ${row.sentence}`, fallback: () => picture(at("inspections", row.uid, "overlay.png")) });
  const shadow = row.shadows.map((each) =>
    [`shadow version ${each.version}`, `${decisionWords(each)}, score ${number(each.score)}${each.differs ? " (differs)" : ""}`]);
  dialog.replaceChildren(
    h("h2", { id: "detail-title" }, row.name),
    h("p", { class: `decision ${row.decision}` }, decisionWords(row)), h("p", {}, row.sentence),
    view ? view.node : h("p", { class: "quiet" }, "The image was not kept."),
    facts([["when", when(row.at)], ["product", `${row.product}, version ${row.version}`], ["source", row.source],
      ["score", `${number(row.score)} (threshold ${number(row.threshold)} for ${percent(row.rate)})`],
      ["p-value", number(row.p_value)], ...shadow,
      ...(row.verdict ? [["said to be", `${row.verdict}, by ${row.verdict_by}`]] : [])]),
    view ? verdict(row, view, changed) : "",
    h("div", { class: "row" }, h("button", { type: "button", onclick: () => dialog.close() }, "Close")));
  if (!dialog.open) dialog.showModal();
}

function verdict(row, view, changed) {
  const after = async (found) => { changed(); await draw({ ...row, ...found }, changed); };
  const path = at("inspections", row.uid, "correction");
  const golden = state.may("engineer")
    ? [true, false].map((anomalous) => button(`Golden sample: must be ${anomalous ? "anomalous" : "good"}`, async () => {
      await post(at("models", row.product, "golden"), { inspection: row.uid, anomalous });
      say("The image is a golden sample now.");
      $("#detail").close();
    })) : [];
  if (row.verdict) return h("div", { class: "row" }, button("Take the correction back", async () => after(await remove(path))), golden);
  if (row.anomalous) {
    return h("div", { class: "row" },
      button("False alarm: the part is good", async () => after(await put(path, { verdict: "false alarm" })), { class: "main" }), golden);
  }
  return h("div", {}, missed(row, view, (drawn) => put(path, { verdict: "missed", boxes: drawn }).then(after)), h("div", { class: "row" }, golden));
}

function missed(row, view, save) {
  let drawn = [];
  const told = h("p", { role: "status", class: "quiet" }, "Draw a box around what was missed, or type its place.");
  const done = button("Missed: this is a defect", () => save(drawn), { class: "main", disabled: true });
  const area = boxes(view, row.width, row.height, (all) => {
    drawn = all;
    done.disabled = !all.length;
    told.textContent = all.length ? `Boxes: ${all.map((box) => box.join(", ")).join("; ")}` : "No box yet.";
  });
  const fields = ["x", "y", "width", "height"].map((name, i) => h("input", { type: "number", min: i < 2 ? 0 : 1,
    max: i % 2 ? row.height : row.width, "aria-label": `Box ${name}`, placeholder: name, size: 6 }));
  return h("div", {}, told,
    h("div", { class: "row" }, fields, h("button", { type: "button", onclick: () => {
      const box = fields.map((each) => Math.round(Number(each.value)));
      if (box[2] > 0 && box[3] > 0) area.add(box);
    } }, "Add box"), h("button", { type: "button", onclick: () => area.clear() }, "Clear")),
    h("div", { class: "row" }, done));
}
