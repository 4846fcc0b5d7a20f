"use strict";
// Which latents are chosen, and in which order: what table, plots and keys have in common.
(() => {
  const listeners = [];
  const columns = new Map();
  let texts = null; // labels and raised tokens in lower case, by which latents are found
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
    const [shown, raised] = await Promise.all([palinka.load("labels"), palinka.load("promoted")]);
    selection.labels = shown;
    texts ??= [shown, raised].map((all) => all.map((text) => ` ${text} `.toLowerCase()));
  };
  selection.labels = null;

  const asked = (query) => query.trim().toLowerCase();
  // Whole words, beginnings, parts.
  const ways = (wanted) => [` ${wanted} `, ` ${wanted}`, wanted];
  const way = (text, parts) => parts.findIndex((part) => text.includes(part));

  /**
   * The latents whose number, label or raised tokens hold a text: the number, then whole words of
   * labels and of raised tokens, then their beginnings, then parts.
   */
  selection.find = (query) => {
    const wanted = asked(query);
    if (wanted === "") return [];
    const number = /^#?\d+$/.test(wanted) ? Number(wanted.replace("#", "")) : -1;
    const parts = ways(wanted);
    const found = parts.flatMap(() => [[], []]);
    for (let i = 0; i < (texts?.[0].length ?? 0); i++) {
      const [own, raised] = texts.map((all) => way(all[i], parts));
      const byLabel = own >= 0 && (raised < 0 || own <= raised);
      if (i !== number && (own >= 0 || raised >= 0)) found[byLabel ? 2 * own : 2 * raised + 1].push(i);
    }
    const first = number >= 0 && number < palinka.overview.latents ? [number] : [];
    return [...first, ...found.flat()];
  };

  /** The raised token by which a latent is found where its label does not show it as well. */
  selection.reason = (latent, query) => {
    const parts = ways(asked(query));
    const [own, raised] = texts.map((all) => way(all[latent], parts));
    if (raised < 0 || (own >= 0 && own <= raised)) return "";
    return texts[1][latent].trim().split(" ").find((word) => ` ${word} `.includes(parts[raised])) ?? "";
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
