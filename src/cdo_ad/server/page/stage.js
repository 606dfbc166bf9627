// An image with its heat map and regions on top.

import { h, svg } from "./dom.js";

export function stage(source, { heat, regions = [], width, height, alt, opacity = 0.8, outlines = true, fallback } = {}) {
  const image = h("img", { src: source, alt });
  if (fallback) image.addEventListener("error", async () => { image.src = await fallback(); }, { once: true });
  const warm = heat ? h("img", { src: heat, alt: "", class: "heat" }) : null;
  if (warm) warm.style.opacity = opacity;
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const pairs = regions.map(({ contour }) => {
    const points = contour.map(([x, y]) => `${x + 0.5},${y + 0.5}`).join(" ");
    return [svg("polygon", { points, class: "under" }), svg("polygon", { points })];
  });
  drawing.append(...pairs.flat());
  drawing.style.display = outlines ? "" : "none";
  return {
    node: h("div", { class: "stage" }, image, warm, drawing),
    drawing,
    setOpacity: (value) => { if (warm) warm.style.opacity = value; },
    setOutlines: (shown) => { drawing.style.display = shown ? "" : "none"; },
    choose: (chosen) => pairs.forEach(([, line], i) => line.classList.toggle("chosen", i === chosen)),
  };
}

// Let people draw boxes with a mouse, a finger or a pen; `changed` is told of all boxes.
export function boxes(view, width, height, changed) {
  const found = [];
  let begin = null;
  let rectangles = [];
  const place = (event) => {
    const { left, top, width: w, height: e } = view.drawing.getBoundingClientRect();
    const clamp = (value, most) => Math.max(0, Math.min(most, Math.round(value)));
    return [clamp(((event.clientX - left) / w) * width, width), clamp(((event.clientY - top) / e) * height, height)];
  };
  const box = ([a, b], [c, d]) => [Math.min(a, c), Math.min(b, d), Math.abs(a - c), Math.abs(b - d)];
  const draw = (all) => {
    rectangles.forEach((each) => each.remove());
    rectangles = all.flatMap(([x, y, w, e]) => ["under", ""].map((name) => {
      const node = svg("rect", { x, y, width: w, height: e, class: name });
      view.drawing.append(node);
      return node;
    }));
  };
  view.node.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    begin = place(event);
    view.node.setPointerCapture(event.pointerId);
  });
  view.node.addEventListener("pointermove", (event) => { if (begin) draw([...found, box(begin, place(event))]); });
  view.node.addEventListener("pointerup", (event) => {
    const last = begin && box(begin, place(event));
    begin = null;
    if (last && last[2] > 0 && last[3] > 0) add(last);
  });
  function add(each) {
    found.push(each);
    draw(found);
    changed(found);
  }
  return { add, clear: () => { found.length = 0; draw([]); changed(found); } };
}
