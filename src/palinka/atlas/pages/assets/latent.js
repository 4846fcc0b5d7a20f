"use strict";
// Everything about one latent.
(() => {
  const { make } = palinka;

  /** A text in which the latent is active. */
  function context({ tokens, peak, document, position }, most) {
    const value = tokens[peak].value;
    const where = `document ${document}, position ${position}`;
    return make(
      "li",
      {},
      make("span", { class: "value", title: where }, palinka.number(value)),
      palinka.shaded(tokens, { most, peak, label: `Text of ${where}; activation ${palinka.number(value)}` }),
    );
  }

  const contexts = (windows, most) =>
    make("ol", { class: "contexts" }, windows.map((window) => context(window, most)));

  function bands(windows, most) {
    const { quantiles, per_quantile: each } = palinka.overview;
    const groups = Array.from({ length: quantiles }, () => []);
    for (const window of windows) groups[Math.floor(window.column / each)].push(window);
    return groups.map((group, band) => {
      const [low, high] = [quantiles - band - 1, quantiles - band].map((i) => Math.round((100 * i) / quantiles));
      return group.length
        ? make("section", {}, make("h3", {}, `Percentiles ${low} to ${high} of its activations`), contexts(group, most))
        : null;
    });
  }

  function card(title, ...content) {
    return make("section", { class: "card" }, make("h2", {}, title), ...content);
  }

  function effects(pairs, vocabulary, heading) {
    return make(
      "table",
      { class: "pairs" },
      make("caption", {}, heading),
      make("tbody", {}, pairs.map(([place, by]) =>
        make("tr", {},
          make("th", { scope: "row", title: `id ${vocabulary.ids[place]}` },
            make("bdi", { class: "piece" }, vocabulary.texts[place])),
          make("td", {}, palinka.number(by))))), // prettier-ignore
    );
  }

  function words({ words: found, sampled }) {
    return [
      make(
        "table",
        { class: "pairs" },
        make("thead", {}, make("tr", {}, ["word", "places", "mean"].map((h) => make("th", { scope: "col" }, h)))),
        make("tbody", {}, found.map(([text, count, mean]) =>
          make("tr", {},
            make("th", { scope: "row" }, make("bdi", { class: "piece" }, text)),
            make("td", {}, String(count)),
            make("td", {}, palinka.number(mean))))), // prettier-ignore
      ),
      make("p", { class: "note" }, `Of ${palinka.plural(sampled, "place")} drawn at random where it is active.`),
    ];
  }

  function nearest(pairs) {
    const { labels } = palinka.selection;
    return make("ol", { class: "near" }, pairs.map(([latent, cosine]) =>
      make("li", {},
        make("a", { href: `#latent=${latent}` }, String(latent)), " ",
        make("span", { class: "value" }, palinka.number(cosine)), " ",
        make("bdi", { class: "words" }, labels?.[latent] ?? "")))); // prettier-ignore
  }

  /** Its value in every column, and its rank among the latents that have one. */
  function values(number) {
    const rows = palinka.overview.columns.map(({ key, label, about }) => {
      const all = palinka.selection.values(key);
      const own = all[number];
      const fewest = /[/_]p(_value|_adjusted)?$/.test(key); // the smallest says most
      let above = 0;
      let there = 0;
      for (const value of all) {
        if (Number.isNaN(value)) continue;
        there++;
        if (fewest ? value < own : value > own) above++;
      }
      const analysis = palinka.overview.analyses.findIndex(({ name }) => key.startsWith(`${name}/`));
      const shown = analysis < 0 ? label : make("a", { href: `#analysis=${analysis}` }, label);
      const rank = Number.isNaN(own) ? "–" : `${palinka.count(above + 1)} of ${palinka.count(there)}`;
      return make("tr", {},
        make("th", { scope: "row", title: about }, shown),
        make("td", { title: palinka.exactly(own) }, palinka.number(own)),
        make("td", {}, rank)); // prettier-ignore
    });
    const head = ["", "value", "rank"].map((heading) => make("th", { scope: "col" }, heading));
    return make("table", { class: "pairs" }, make("thead", {}, make("tr", {}, head)), make("tbody", {}, rows));
  }

  /** Where the latent is in the table's order, and what stands beside it there. */
  palinka.neighbors = (number) => {
    const { overview, selection } = palinka;
    let order = selection.order();
    let place = order.indexOf(number);
    if (place < 0) {
      order = Uint32Array.from({ length: overview.latents }, (_, i) => i);
      place = number;
    }
    const chosen = order.length < overview.latents ? " chosen" : "";
    return {
      before: place > 0 ? order[place - 1] : null,
      after: place + 1 < order.length ? order[place + 1] : null,
      where: `${palinka.count(place + 1)} of ${palinka.count(order.length)}${chosen}`,
    };
  };

  function heading(number) {
    const { before, after, where } = palinka.neighbors(number);
    const step = (latent, text, about) =>
      latent === null
        ? make("span", { class: "step", "aria-hidden": "true" }, text)
        : make("a", { class: "step", href: `#latent=${latent}`, "aria-label": about, title: about }, text);
    return make(
      "div",
      { class: "heading" },
      make("h1", {}, `Latent ${number}`),
      make(
        "p",
        { class: "steps" },
        step(before, "←", `previous: latent ${before}`),
        make("span", {}, where),
        step(after, "→", `next: latent ${after}`),
      ),
    );
  }

  /** The page of a latent. */
  palinka.latentPage = async (number) => {
    const [record, vocabulary] = await Promise.all([
      palinka.latent(number),
      palinka.vocabulary(),
      palinka.selection.loadLabels(),
    ]);
    const most = palinka.selection.values("max")[number];
    const dead = !(most > 0);
    const [top, drawn] = [record.top, record.bands].map((w) => palinka.windows(w, vocabulary));
    const direct = record.raised.length > 0;
    const element = make(
      "article",
      { class: "latent" },
      heading(number),
      make("p", { class: "lead" }, make("bdi", {}, palinka.selection.labels[number] || "no words")),
      make(
        "div",
        { class: "columns" },
        make(
          "div",
          { class: "texts" },
          dead
            ? make("p", {}, `It is active at no token of ${palinka.overview.text}.`)
            : [
                make("h2", {}, "Most active in"),
                contexts(top, most),
                make("h2", {}, "At random from the whole range"),
                bands(drawn, most),
              ],
        ),
        make(
          "div",
          { class: "facts" },
          dead ? null : card("Activations", palinka.activationHistogram(record.histogram)),
          dead ? null : card("Words", words(record)),
          direct
            ? card(
                "Direct effect on logits",
                make(
                  "div",
                  { class: "both" },
                  effects(record.raised, vocabulary, "raises"),
                  effects(record.lowered, vocabulary, "lowers"),
                ),
              )
            : null,
          record.nearest.length ? card("Nearest directions", nearest(record.nearest)) : null,
          card("Numbers", values(number)),
        ),
      ),
    );
    return { title: `Latent ${number}`, element, shown: () => {} };
  };
})();
