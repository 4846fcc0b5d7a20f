"use strict";
// Which latents are chosen, and in which order: what table, plots and keys have in common.
(() => {
  const listeners = [];
  const columns = new Map();
  let labels = null; // lower case, with all that a latent is found by
  let order = new Uint32Array(0);
  let chosen = new Uint8Array(0);

  const selection = {
    sort: { key: "latent", descending: false },
    ranges: new Map(), // column -> [low, high]
    query: null, // {text, latents} of a search
    scroll: 0,
  };

  /** The numbers of a column; `latent` is one like the others. */
  selection.values = (key) => {
    if (!columns.has(key)) {
      const column = palinka.overview.columns.find((each) => each.key === key);
      const count = palinka.overview.latents;
      columns.set(
        key,
        column ? palinka.unpack(column.values) : Float32Array.from({ length: count }, (_, i) => i),
      );
    }
    return columns.get(key);
  };

  selection.column = (key) =>
    palinka.overview.columns.find((each) => each.key === key) ?? {
      key: "latent",
      label: "latent",
      unit: "number",
      about: "number of the latent in the dictionary",
      log: false,
    };

  /** A column's label with its unit. */
  selection.named = (key) => {
    const { label, unit } = selection.column(key);
    return unit ? `${label} (${unit})` : label;
  };

  /** The chosen latents in the table's order. */
  selection.order = () => order;
  /** 1 for every latent that is chosen. */
  selection.mask = () => chosen;
  selection.isWhole = () => order.length === palinka.overview.latents;
  selection.changed = (listener) => listeners.push(listener);

  /** Labels come after the numbers, so that the first page need not wait for them. */
  selection.loadLabels = async () => {
    const [shown, more] = await Promise.all([palinka.load("labels"), palinka.load("promoted")]);
    selection.labels = shown;
    labels ??= shown.map((label, i) => ` ${label} ${more[i]} `.toLowerCase());
    return labels;
  };
  selection.labels = null;

  /** The latents whose number, label or raised tokens hold a text: the number, whole words, parts. */
  selection.find = (query) => {
    const wanted = query.trim().toLowerCase();
    if (wanted === "") return [];
    const number = /^#?\d+$/.test(wanted) ? Number(wanted.replace("#", "")) : -1;
    const [whole, begun, parts] = [[], [], []];
    if (number >= 0 && number < palinka.overview.latents) whole.push(number);
    for (let i = 0; labels && i < labels.length; i++) {
      if (i === number || !labels[i].includes(wanted)) continue;
      if (labels[i].includes(` ${wanted} `)) whole.push(i);
      else (labels[i].includes(` ${wanted}`) ? begun : parts).push(i);
    }
    return [...whole, ...begun, ...parts];
  };

  /** The raised token by which a latent is found where its label does not show it. */
  selection.reason = (latent, query) => {
    const wanted = query.trim().toLowerCase();
    if (selection.labels[latent].toLowerCase().includes(wanted)) return "";
    const words = labels[latent].split(" ");
    return words.find((word) => word === wanted) ?? words.find((word) => word.includes(wanted)) ?? "";
  };

  selection.update = () => {
    const count = palinka.overview.latents;
    const mask = new Uint8Array(count);
    if (selection.query) for (const latent of selection.query.latents) mask[latent] = 1;
    else mask.fill(1);
    for (const [key, [low, high]] of selection.ranges) {
      const values = selection.values(key);
      for (let i = 0; i < count; i++) if (!(values[i] >= low && values[i] <= high)) mask[i] = 0;
    }
    const kept = [];
    for (let i = 0; i < count; i++) if (mask[i]) kept.push(i);
    order = sorted(Uint32Array.from(kept));
    chosen = mask;
    for (const listener of listeners) listener();
  };

  // Latents without a value come last, whichever way the others go; equal ones by number.
  function sorted(latents) {
    const { key, descending } = selection.sort;
    const values = selection.values(key);
    const sign = descending ? -1 : 1;
    return latents.sort((a, b) => {
      const x = values[a];
      const y = values[b];
      if (x < y) return -sign;
      if (x > y) return sign;
      return Number.isNaN(x) - Number.isNaN(y) || a - b;
    });
  }

  palinka.selection = selection;
})();
