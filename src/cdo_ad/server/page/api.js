// Requests to the server. The key stays in this tab and goes into a header, never into an address or a cookie.

const KEY = "cdo-ad key";

export class Problem extends Error {
  constructor(status, body) {
    super(body.error ?? `the server answered ${status}`);
    this.status = status;
    this.body = body;
  }
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

export function hasKey() {
  return Boolean(sessionStorage.getItem(KEY));
}

export async function send(method, path, body) {
  const headers = {};
  if (hasKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
  if (body !== undefined && !(body instanceof FormData)) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, { method, headers, body });
  } catch {
    throw new Problem(0, { error: "the server does not answer: is it running?" });
  }
  if (!answer.ok) throw new Problem(answer.status, await answer.json().catch(() => ({})));
  return answer;
}

const json = (method) => async (path, body) => (await send(method, path, body)).json();
export const get = json("GET");
export const post = json("POST");
export const put = json("PUT");
export const remove = json("DELETE");

// The address of a picture that needs the key.
export async function picture(path) {
  return URL.createObjectURL(await (await send("GET", path)).blob());
}

export async function download(path, name) {
  const link = document.createElement("a");
  link.href = await picture(path);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export function upload(path, file, field = "file") {
  const form = new FormData();
  form.append(field, file, file.name ?? "camera.png");
  return post(path, form);
}

export function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

export const at = (...parts) => "/v1/" + parts.map(encodeURIComponent).join("/");
