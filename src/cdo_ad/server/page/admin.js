// Administer: keys, the audit trail, what is stored.

import { at, download, get, post, remove } from "./api.js";
import { button, facts, h, table, when } from "./dom.js";

export async function show(main, state) {
  const again = () => show(main, state);
  const parts = [await storage(), await audit(state)];
  if (state.may("admin")) parts.unshift(await keys(again));
  main.replaceChildren(...parts);
}

async function keys(again) {
  const name = h("input", { maxLength: 100, placeholder: "who or what uses it" });
  const role = h("select", {}, ["operator", "engineer", "admin"].map((each) => h("option", { value: each }, each)));
  const place = h("div", { "aria-live": "polite" });
  const rows = (await get("/v1/keys")).map((each) => [each.name, each.role, when(each.created),
    each.revoked ? `revoked ${when(each.revoked)}` : button("Revoke", async () => { await remove(at("keys", each.name)); await again(); },
      { "aria-label": `Revoke the key ${each.name}` })]);
  return h("section", { class: "panel" }, h("h2", {}, "Keys"),
    h("p", { class: "quiet" }, "Operators inspect and correct. Engineers also teach, adapt and activate. Admins also make keys."),
    h("div", { class: "row" }, h("label", {}, "Name", name), h("label", {}, "Role", role), button("Make a key", async () => {
      const made = await post("/v1/keys", { name: name.value, role: role.value });
      place.replaceChildren(h("p", {}, "The new key, shown this once: ", h("span", { class: "key" }, made.key)));
    })), place, table("Keys", ["name", "role", "made", ""], rows));
}

async function audit(state) {
  const { whole, broken_at: broken, entries } = await get("/v1/audit");
  return h("section", { class: "panel" }, h("h2", {}, "Audit trail"),
    h("p", { class: whole ? "good" : "anomalous" }, whole ? "✓ The chain is whole: nothing was changed or taken out."
      : `✕ The chain is broken at entry ${broken}: something was changed.`),
    state.may("admin") ? button("Export", () => download("/v1/audit.jsonl", "audit.jsonl")) : null,
    table("The last 200 entries, newest first", ["when", "who", "what", "details"], entries.reverse().map((each) =>
      [when(each.at), each.by, each.action, each.detail])));
}

async function storage() {
  const found = await get("/v1/storage");
  return h("section", { class: "panel" }, h("h2", {}, "Images kept"), facts([
    ["images", String(found.images)], ["size", `${(found.bytes / 1e6).toFixed(1)} MB`],
    ["kept are", found.keep], ["for", `${found.days} days, up to ${found.gigabytes} GB`]]));
}
