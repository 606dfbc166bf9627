// The camera of this device: a preview, single images, or one after the other.

import { button, h, say } from "./dom.js";

// take(blob) is called with each image and may return a promise, for which the next image waits.
export function camera(take, { continuous = true } = {}) {
  const video = h("video", { muted: true, playsInline: true, hidden: true });
  video.setAttribute("aria-label", "Camera preview");
  const box = h("div", {});
  let stream = null;
  let running = false;

  async function open() {
    if (!navigator.mediaDevices) throw new Error("the browser gives no camera here: open the page by https or localhost");
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 }, facingMode: "environment" } })
      .catch((error) => { throw new Error(`the camera cannot be used: ${error.message}`); });
    video.srcObject = stream;
    video.hidden = false;
    await video.play();
    draw();
  }

  function close() {
    running = false;
    stream?.getTracks().forEach((track) => track.stop());
    stream = null;
    video.hidden = true;
    draw();
  }

  function capture() {
    const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }

  async function repeat() {
    running = !running;
    draw();
    while (running && stream) {
      try {
        await take(await capture());
      } catch (error) {
        say(error);
        await new Promise((done) => setTimeout(done, 1000));
      }
      await new Promise((done) => setTimeout(done, 100));
    }
  }

  function draw() {
    const buttons = stream
      ? [button("Capture", async () => take(await capture()), { class: "main" }),
         continuous && h("button", { type: "button", onclick: repeat, "aria-pressed": String(running) },
           running ? "Stop inspecting" : "Inspect continuously"),
         h("button", { type: "button", onclick: close }, "Close camera")]
      : [button("Use camera", open)];
    box.replaceChildren(h("div", { class: "row" }, buttons), video);
  }

  draw();
  return { node: box, close };
}
