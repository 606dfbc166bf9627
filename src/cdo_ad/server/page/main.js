// The frame: views by the address' hash, who is signed in, which product is chosen, the drift light.

import { Problem, get, hasKey, post, setKey, at } from "./api.js";
import { $, button, h, say } from "./dom.js";
import * as admin from "./admin.js";
import * as inspect from "./inspect.js";
import * as review from "./review.js";
import * as teach from "./teach.js";
import * as versions from "./versions.js";

const VIEWS = { inspect, review, teach, versions, admin };
const NEEDS = { teach: "engineer", versions: "engineer", admin: "engineer" };
const ROLES = ["operator", "engineer", "admin"];
export const state = { me: null, models: [], product: "" };
let leave = null;

const may = (role) => ROLES.indexOf(state.me.role) >= ROLES.indexOf(role);
state.may = may;

async function signIn() {
  const dialog = $("#sign-in");
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  setKey($("#key").value.trim());
  $("#key").value = "";
  await start();
}

async function start() {
  try {
    state.me = await get("/v1/me");
  } catch (error) {
    if (error instanceof Problem && error.status === 401) {
      if (hasKey()) say(error);
      return signIn();
    }
    say(error);
    return setTimeout(start, 3000);
  }
  say("");
  $("#me").textContent = state.me.auth ? `${state.me.name} (${state.me.role})` : "";
  for (const link of document.querySelectorAll("nav a")) {
    const role = NEEDS[link.hash.slice(1)];
    link.hidden = Boolean(role) && !may(role);
  }
  await refreshModels();
  await show();
}

export async function refreshModels(choose) {
  state.models = await get("/v1/models");
  const names = state.models.map((model) => model.name);
  if (choose) state.product = choose;
  if (!names.includes(state.product)) state.product = (state.models.find((m) => m.active) ?? state.models[0])?.name ?? "";
  $("#product").replaceChildren(...names.map((name) => h("option", { value: name, selected: name === state.product }, name)));
  $("#product").disabled = !names.length;
  drawLight();
}

function drawLight() {
  const model = state.models.find((each) => each.name === state.product);
  const place = $("#light");
  place.className = `light ${model?.light.state ?? ""}`;
  if (!model?.active) return place.replaceChildren();
  const red = model.light.state === "red";
  place.replaceChildren(
    h("span", { title: model.light.sentence }, red ? "▲ Drift: look at camera and light" : "● No drift"),
    red && may("engineer") ? button("Reset", async () => {
      await post(at("models", model.name, "drift", "reset"));
      await refreshModels();
    }) : "");
}

async function show() {
  if (!state.me) return;
  const name = VIEWS[location.hash.slice(1)] ? location.hash.slice(1) : "inspect";
  leave?.();
  leave = null;
  say("");
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${name[0].toUpperCase()}${name.slice(1)} – inspection`;
  const main = $("#main");
  main.className = "";
  main.replaceChildren();
  if (!state.product && name !== "teach" && name !== "admin") {
    main.replaceChildren(h("section", { class: "panel" }, h("h2", {}, "There is no product yet"),
      h("p", {}, "Teach one from good images, or start the server with a run folder."),
      h("a", { href: "#teach" }, "Teach a product")));
    return;
  }
  try {
    leave = await VIEWS[name].show(main, state) ?? null;
  } catch (error) {
    say(error);
  }
}

// The focus moves before the view loads: afterwards it would be taken from what a person has reached meanwhile.
window.addEventListener("hashchange", () => { $("#main").focus(); show(); });
$("#product").addEventListener("change", () => { state.product = $("#product").value; drawLight(); show(); });
setInterval(() => { if (state.me && !document.hidden) refreshModels().catch(() => {}); }, 5000);
start();
