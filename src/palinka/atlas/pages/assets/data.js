"use strict";
// Data comes as scripts: a page from the disk may load those, and may not fetch anything.
window.palinka = {};

(() => {
  const KEPT_CHUNKS = 64; // of latents that were looked at
  const NUMBERS = { float32: Float32Array, uint32: Uint32Array, uint16: Uint16Array };
  const waiting = new Map(); // name -> {promise, resolve}
  const chunks = [];

  function entry(name) {
    if (!waiting.has(name)) {
      const made = {};
      made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
      made.promise.catch(() => {}); // the caller gets the rejection
      waiting.set(name, made);
    }
    return waiting.get(name);
  }

  /** Takes what a data script hands over. */
  palinka.receive = (name, value) => entry(name).resolve(value);

  /** What data/NAME.js holds. */
  palinka.load = (name) => {
    const known = waiting.has(name);
    const { promise, reject } = entry(name);
    if (!known) {
      const script = document.createElement("script");
      script.src = `data/${name}.js`;
      script.onload = () => script.remove();
      script.onerror = () => {
        script.remove();
        waiting.delete(name);
        reject(new Error(`data/${name}.js cannot be read: is the whole folder here?`));
      };
      document.head.append(script);
    }
    return promise;
  };

  /** The record of one latent. */
  palinka.latent = async (number) => {
    const { chunk } = palinka.overview;
    const file = Math.floor(number / chunk);
    const name = `latents-${String(file).padStart(4, "0")}`;
    const records = palinka.load(name);
    if (!chunks.includes(name)) chunks.push(name);
    if (chunks.length > KEPT_CHUNKS) waiting.delete(chunks.shift());
    return (await records)[number - file * chunk];
  };

  /** An array of numbers from its base64. */
  palinka.unpack = ({ kind, data }) => {
    const text = atob(data);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return new NUMBERS[kind](bytes.buffer);
  };

  /** The tokens' texts and ids, by their places in the list. */
  palinka.vocabulary = async () => {
    const { ids, texts } = await palinka.load("vocabulary");
    palinka.tokenIds ??= palinka.unpack(ids);
    return { ids: palinka.tokenIds, texts };
  };

  // The overview is in the page from the beginning; what has not come by its end does not come.
  const { reject } = entry("overview");
  addEventListener("load", () =>
    reject(new Error("data/overview.js cannot be read: is the whole folder here?")),
  );
})();
