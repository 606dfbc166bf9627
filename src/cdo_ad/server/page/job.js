// A job's progress, with a button to end it.

import { at, get, post } from "./api.js";
import { button, h } from "./dom.js";

const NAMES = { check: "check", train: "training", adapt: "adaptation" };

export function watchJob(place, job, done) {
  const name = NAMES[job.kind];
  const bar = h("progress", { max: 1, "aria-label": `Progress of the ${name}` });
  const words = h("p", { role: "status" }, "Waiting for its turn.");
  const cancel = button("Cancel", () => post(at("jobs", job.uid, "cancel")));
  place.replaceChildren(words, bar, cancel);
  async function ask() {
    const now = await get(at("jobs", job.uid)).catch(() => null);
    if (!place.isConnected) return;
    if (now && !["waiting", "running"].includes(now.state)) {
      bar.remove();
      cancel.remove();
      words.textContent = now.state === "done" ? `The ${name} is done.` : `The ${name} ended (${now.state}): ${now.message}`;
      if (now.state === "done") done(now);
      return;
    }
    const p = now?.progress;
    if (p) {
      words.textContent = `${p.stage}: ${p.done}${p.total ? ` of ${p.total}` : ""}`;
      if (p.total) bar.value = p.done / p.total;
    } else if (now?.state === "running") words.textContent = "Starting.";
    setTimeout(ask, 700);
  }
  ask();
}
