// The region of interest: painted over a good image, or typed; kept as a mask whose white is inspected.

import { at, picture, remove, send } from "./api.js";
import { button, h } from "./dom.js";

export function regionPainter() {
  const body = h("div", {});
  const node = h("section", { class: "panel" }, h("h2", {}, "Where to inspect"), body);
  let product = "";

  async function load(name, digest, kept) {
    product = name;
    if (!digest) return body.replaceChildren(h("p", { class: "quiet" }, "Upload an image first."));
    const told = h("p", { role: "status" }, kept ? "Only the painted region is inspected." : "The whole image is inspected.");
    const image = h("img", { alt: "A good image to paint on" });
    const mask = h("canvas", { class: "paint" });
    mask.setAttribute("aria-label", "Paint where to inspect; or type a rectangle below");
    image.src = await picture(at("teach", product, "images", digest));
    await image.decode();
    [mask.width, mask.height] = [image.naturalWidth, image.naturalHeight];
    const draw = mask.getContext("2d");
    if (kept) await show(draw, mask);
    const brush = h("input", { type: "range", min: 4, max: 60, value: 20, "aria-label": "Brush size" });
    const erase = h("input", { type: "checkbox" });
    paintWith(mask, draw, brush, erase);
    const fields = ["left", "top", "right", "bottom"].map((side, i) => h("input", { type: "number", min: 0, max: 100,
      value: i < 2 ? 0 : 100, size: 4, "aria-label": `Rectangle, ${side} in percent` }));
    const rectangle = () => {
      const [x, y, right, bottom] = fields.map((each, i) => (Number(each.value) / 100) * (i % 2 ? mask.height : mask.width));
      draw.fillRect(x, y, right - x, bottom - y);
    };
    body.replaceChildren(told, h("div", { class: "stage" }, image, mask),
      h("div", { class: "row" }, h("label", {}, "Brush", brush), h("label", {}, erase, "Erase"),
        h("button", { type: "button", onclick: () => draw.clearRect(0, 0, mask.width, mask.height) }, "Clear")),
      h("div", { class: "row" }, fields, "%", h("button", { type: "button", onclick: rectangle }, "Add rectangle")),
      h("div", { class: "row" }, button("Save the region", async () => {
        await save(mask);
        told.textContent = "Only the painted region is inspected; trainings from now on respect it.";
      }, { class: "main" }), button("Inspect the whole image", async () => {
        await remove(at("teach", product, "region"));
        draw.clearRect(0, 0, mask.width, mask.height);
        told.textContent = "The whole image is inspected.";
      })));
  }

  async function show(draw, mask) {
    const old = new Image();
    old.src = await picture(at("teach", product, "region"));
    await old.decode();
    draw.drawImage(old, 0, 0, mask.width, mask.height);
    const pixels = draw.getImageData(0, 0, mask.width, mask.height);
    for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set([0, 145, 230, pixels.data[i] > 127 ? 255 : 0], i);
    draw.putImageData(pixels, 0, 0);
  }

  async function save(mask) {
    const flat = h("canvas", { width: mask.width, height: mask.height });
    const draw = flat.getContext("2d");
    const pixels = mask.getContext("2d").getImageData(0, 0, mask.width, mask.height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      const white = pixels.data[i + 3] > 127 ? 255 : 0;
      pixels.data.set([white, white, white, 255], i);
    }
    draw.putImageData(pixels, 0, 0);
    const form = new FormData();
    form.append("file", await new Promise((done) => flat.toBlob(done, "image/png")), "region.png");
    await send("PUT", at("teach", product, "region"), form);
  }

  return { node, load };
}

function paintWith(mask, draw, brush, erase) {
  draw.fillStyle = draw.strokeStyle = "rgb(0 145 230)";
  draw.lineCap = draw.lineJoin = "round";
  let last = null;
  const place = (event) => {
    const { left, top, width, height } = mask.getBoundingClientRect();
    return [((event.clientX - left) / width) * mask.width, ((event.clientY - top) / height) * mask.height];
  };
  const line = (from, to) => {
    draw.globalCompositeOperation = erase.checked ? "destination-out" : "source-over";
    draw.lineWidth = (Number(brush.value) / 100) * Math.min(mask.width, mask.height);
    draw.beginPath();
    draw.moveTo(...from);
    draw.lineTo(...to);
    draw.stroke();
    draw.globalCompositeOperation = "source-over";
  };
  mask.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    mask.setPointerCapture(event.pointerId);
    last = place(event);
    line(last, last);
  });
  mask.addEventListener("pointermove", (event) => {
    if (!last) return;
    const now = place(event);
    line(last, now);
    last = now;
  });
  mask.addEventListener("pointerup", () => { last = null; });
}
