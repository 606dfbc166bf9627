// Teach: good images of a product, the check, the training, and the new version.

import { at, download, get, post, remove, upload } from "./api.js";
import { camera } from "./camera.js";
import { button, count, dropZone, filePicker, h, lazy, percent, say, table } from "./dom.js";
import { watchJob } from "./job.js";
import { refreshModels } from "./main.js";
import { regionPainter } from "./region.js";

let product = "";
const SIGNS = { error: "✕ error", warning: "▲ warning", note: "● note" };

export async function show(main, state) {
  product ||= state.product || "product";
  const name = h("input", { value: product, maxLength: 64, pattern: "[A-Za-z0-9][A-Za-z0-9 _.\\-]*", required: true,
    onchange: () => { if (name.reportValidity()) { product = name.value; load().catch(say); } } });
  const told = h("p", { role: "status" });
  const cards = h("ul", { class: "cards" });
  const checked = h("div", {});
  const trained = h("div", {});

  async function add(files) {
    const refused = [];
    for (const [i, file] of files.entries()) {
      told.textContent = `Uploading ${i + 1} of ${files.length}`;
      const found = await upload(at("teach", product, "images"), file, "files");
      refused.push(...found.refused.map((each) => each.error));
    }
    await load();
    if (refused.length) say(`${count(refused.length, "image")} cannot be used; the first: ${refused[0]}`);
  }
  const take = (files) => { say(""); return add(files).catch(say); };

  async function load() {
    const { images, region } = await get(at("teach", product));
    await painting.load(product, images.at(-1), region);
    told.textContent = `${count(images.length, "good image")}. 20 guarantee a false-alarm rate of 5 %, 100 one of 1 %.`;
    cards.replaceChildren(...images.slice(-60).reverse().map((digest, i) => h("li", {}, h("div", { class: "card" },
      lazy(at("teach", product, "images", digest), `Good image ${images.length - i}`),
      button("Remove", async () => { await remove(at("teach", product, "images", digest)); await load(); },
        { "aria-label": `Remove image ${images.length - i}` })))));
  }

  const painting = regionPainter();
  const rate = h("select", {}, [0.01, 0.02, 0.05, 0.1, 0.2].map((each) =>
    h("option", { value: each, selected: each === 0.05 }, percent(each))));
  const plan = () => ({ rate: Number(rate.value) });

  main.replaceChildren(
    h("section", { class: "panel" }, h("h2", {}, "1. Good images"), h("label", {}, "Product", name),
      dropZone(h("div", { class: "drop" }, h("p", { class: "quiet" }, "Drop images of good parts here. Show what varies: parts, places, light.")), take),
      h("div", { class: "row" }, filePicker("Choose images", take, true)), camera((blob) => add([blob]), { continuous: false }).node,
      told, cards),
    painting.node,
    h("section", { class: "panel" }, h("h2", {}, "2. Check"),
      h("p", { class: "quiet" }, "Finds what would spoil the training: odd sizes, copies, images unlike the others."),
      button("Check the images", async () => watchJob(checked, await post(at("teach", product, "check"), plan()),
        (job) => checked.append(findings(job.result)))), checked),
    h("section", { class: "panel" }, h("h2", {}, "3. Train"),
      h("div", { class: "row" }, h("label", {}, "At most this share of good images may raise a false alarm", rate),
        button("Train", async () => watchJob(trained, await post(at("teach", product, "train"), plan()),
          (job) => { trained.append(finished(job)); refreshModels().catch(say); }), { class: "main" })), trained));
  await load();
}

function findings(result) {
  if (!result.findings.length) return h("p", {}, "Nothing is wrong.");
  return table("Findings", ["", "what and what to do", "images"], result.findings.map((each) =>
    [SIGNS[each.level], each.text, String(each.count)]));
}

function finished(job) {
  const { version, promise, report } = job.result;
  const here = product;
  const box = h("div", {}, h("h3", {}, `Version ${version}`), ...promise.map((line) => h("p", {}, line)), h("div", { class: "row" },
    button("Activate it", async () => {
      await post(at("models", here, "versions", String(version), "activate"));
      await refreshModels(here);
      box.append(h("p", { role: "status" }, `Version ${version} of ${here} judges now. `, h("a", { href: "#inspect" }, "Inspect an image")));
    }, { class: "main" }),
    report ? button("Download the report", () => download(at("models", here, "versions", String(version), "report"), `report-${version}.html`)) : null));
  return box;
}
