"use strict";
// Everything about one latent.
(() => {
  const { make } = palinka;
  // A token of bytes or control characters alone, as Python spells them out.
  const BYTES = /^(⟨[0-9A-FU+ ]*⟩)+$/;

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
    const rows = (some) =>
      make("tbody", {}, some.map(([place, by]) =>
        make("tr", {},
          make("th", { scope: "row", title: `id ${vocabulary.ids[place]}` },
            make("bdi", { class: "piece" }, vocabulary.texts[place])),
          make("td", {}, palinka.number(by))))); // prettier-ignore
    const isBytes = ([place]) => BYTES.test(vocabulary.texts[place]);
    const bytes = pairs.filter(isBytes);
    return make(
      "div",
      {},
      make("table", { class: "pairs" }, make("caption", {}, heading), rows(pairs.filter((pair) => !isBytes(pair)))),
      bytes.length
        ? make("details", {}, make("summary", {}, palinka.plural(bytes.length, "byte token")),
            make("table", { class: "pairs" }, rows(bytes))) // prettier-ignore
        : null,
    );
  }

  const columns = (...headings) =>
    make("thead", {}, make("tr", {}, headings.map((heading) => make("th", { scope: "col" }, heading))));

  function tokens({ tokens: found }, vocabulary) {
    return [
      make(
        "table",
        { class: "pairs" },
        columns("token", "count", "mean", "max"),
        make("tbody", {}, found.map(([place, count, mean, max]) =>
          make("tr", {},
            make("th", { scope: "row", title: `id ${vocabulary.ids[place]}` },
              make("bdi", { class: "piece" }, vocabulary.texts[place])),
            [palinka.count(count), palinka.number(mean), palinka.number(max)].map((text) => make("td", {}, text))))), // prettier-ignore
      ),
      make("p", { class: "note" }, "Tokens that hold the most of its activation, with their count in the text. Means are over all occurrences."),
    ];
  }

  /** The value below which a share of the activations is, to within a bin of the histogram. */
  function percentile({ width, counts }, percent) {
    let left = (percent / 100) * counts.reduce((sum, count) => sum + count, 0);
    const bin = counts.findIndex((count) => (left -= count) <= 0);
    return (bin + 1 + left / counts[bin]) * width;
  }

  /** Coefficients for steering, in units of its own activations and of the site's norm. */
  function steering(number, { histogram, length }, most) {
    const { norm, site } = palinka.overview;
    const median = percentile(histogram, 50);
    const sizes = [
      ["typical: median", median],
      ["strong: 95th percentile", percentile(histogram, 95)],
      ["maximum", most],
      ["10 % of the norm", (0.1 * norm) / length],
      ["100 % of the norm", norm / length],
    ];
    return [
      make(
        "table",
        { class: "pairs" },
        columns("", "activation", "× median", "% of norm"),
        make("tbody", {}, sizes.map(([name, size]) =>
          make("tr", {},
            make("th", { scope: "row" }, name),
            [size, size / median, (100 * size * length) / norm].map((value) =>
              make("td", { title: palinka.exactly(value) }, palinka.number(value)))))), // prettier-ignore
      ),
      make("p", { class: "note" },
        "Quantiles where it is active, to within a bin of the histogram. As coefficients for steering: ",
        make("code", {}, `edits.add(${number}, ${median.toPrecision(3)})`),
        ` adds its median. An activation of 1 adds a vector of norm ${palinka.number(length)} to ${site.split(" → ").at(-1)}, whose activations have a median norm of ${palinka.number(norm)}.`), // prettier-ignore
    ];
  }

  /** What interventions on the latent do, by one analysis. */
  function intervention({ analysis, about, rows, note, level }) {
    const number = (value) => (value === null ? "" : palinka.number(value));
    return [
      make(
        "table",
        { class: "pairs effects" },
        make("caption", {}, make("a", { href: `#analysis=${analysis}` }, palinka.overview.analyses[analysis].name), ` · ${about}`),
        columns("", "effect", `${100 * level} % interval`, "p"),
        make("tbody", {}, rows.map(([name, effect, low, high, p]) =>
          make("tr", {},
            make("th", { scope: "row" }, name),
            make("td", {}, effect === null && p === null ? "not reached" : number(effect)),
            make("td", {}, low === null ? "" : `${number(low)} to ${number(high)}`),
            make("td", {}, number(p))))), // prettier-ignore
      ),
      make("p", { class: "note" }, note),
    ];
  }

  /** What a language model wrote about it, and how well that tells its texts from others. */
  function explanation({ text, model, scores }) {
    const number = (value) => (value === null ? "" : palinka.number(value));
    return [
      make("p", {}, make("bdi", {}, text)),
      make(
        "table",
        { class: "pairs" },
        columns("", "score", "95 % interval", "texts"),
        make("tbody", {}, scores.map(([name, value, low, high, n]) =>
          make("tr", {},
            make("th", { scope: "row" }, name),
            make("td", {}, number(value)),
            make("td", {}, low === null ? "" : `${number(low)} to ${number(high)}`),
            make("td", {}, palinka.count(n))))), // prettier-ignore
      ),
      make("p", { class: "note" }, "Written by ", make("bdi", {}, model),
        ", and scored by it on texts of other documents. Detection and fuzzing are balanced accuracies: 0.5 is chance. “shuffled” has the explanation of another latent, “tokens” only the main tokens of this one. “intruder” is the share of foreign texts found among four of the latent, “mixed” among four of other latents: 0.2 is chance."), // prettier-ignore
    ];
  }

  /** Its match in the other dictionary. */
  function counterpart(number, against) {
    const { here, there, cosine } = palinka.matches(against);
    const at = here.indexOf(number);
    if (at < 0) return make("p", {}, "It has no match.");
    return make("p", { class: "match" }, `Latent ${there[at]}, cosine `, make("b", {}, palinka.number(cosine[at])), " ",
      make("bdi", { class: "words" }, against.tokens[there[at]])); // prettier-ignore
  }

  function nearest(pairs) {
    const { labels } = palinka.selection;
    return make("ol", { class: "near" }, pairs.map(([latent, cosine]) =>
      make("li", {},
        make("a", { href: `#latent=${latent}` }, String(latent)), " ",
        make("span", { class: "value" }, palinka.number(cosine)), " ",
        make("bdi", { class: "words" }, labels?.[latent] ?? "")))); // prettier-ignore
  }

  /** Its value in every column, and its rank where one is of use: not of p, thresholds, yes and no. */
  function values(number) {
    const rows = palinka.overview.columns.map(({ key, about }) => {
      const label = palinka.selection.named(key);
      const all = palinka.selection.values(key);
      const own = all[number];
      const ranked = !/[/_](p(_value|_adjusted)?|threshold)$/.test(key) && all.some((value) => value < 0 || (value > 0 && value !== 1));
      let above = 0;
      let there = 0;
      for (const value of all) {
        if (Number.isNaN(value)) continue;
        there++;
        if (value > own) above++;
      }
      const analysis = palinka.overview.analyses.findIndex(({ name }) => key.startsWith(`${name}/`));
      const shown = analysis < 0 ? label : make("a", { href: `#analysis=${analysis}` }, label);
      const rank = !ranked || Number.isNaN(own) ? "–" : `${palinka.count(above + 1)} of ${palinka.count(there)}`;
      return make("tr", {},
        make("th", { scope: "row", title: about }, shown),
        make("td", { title: palinka.exactly(own) }, palinka.number(own)),
        make("td", {}, rank)); // prettier-ignore
    });
    return make("table", { class: "pairs" }, columns("", "value", "rank"), make("tbody", {}, rows));
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
    const [record, vocabulary, against] = await Promise.all([
      palinka.latent(number),
      palinka.vocabulary(),
      palinka.overview.against ? palinka.load("against") : null,
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
      make("p", { class: "lead" }, make("bdi", {}, palinka.selection.labels[number] || "never active")),
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
          record.explanation ? card("Explanation", explanation(record.explanation)) : null,
          dead ? null : card("Activations", palinka.activationHistogram(record.histogram)),
          dead ? null : card("Tokens", tokens(record, vocabulary)),
          dead ? null : card("Typical activation and steering", steering(number, record, most)),
          record.effects.length ? card("Effects on predictions", record.effects.map(intervention)) : null,
          direct
            ? card(
                "Direct effect on logits",
                make(
                  "div",
                  { class: "both" },
                  effects(record.raised, vocabulary, "raises"),
                  effects(record.lowered, vocabulary, "lowers"),
                ),
                make("p", { class: "note" }, "Change of a token's logit per unit of activation, about the mean of all tokens, without the final norm's division. No unit: compare within this model."),
              )
            : null,
          record.nearest.length ? card("Nearest directions", nearest(record.nearest)) : null,
          against ? card(`In ${against.name}`, counterpart(number, against)) : null,
          card("Numbers", values(number)),
        ),
      ),
    );
    return { title: `Latent ${number}`, element, shown: () => {} };
  };
})();
