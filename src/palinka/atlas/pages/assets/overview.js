"use strict";
// The first page: what was measured, how the latents are distributed, and the table of them.
(() => {
  let page = null;

  function metric({ label, unit, value, low, high }) {
    const interval = low === null ? null : palinka.interval(low, high, " over documents");
    return palinka.make(
      "div",
      {},
      palinka.make("dt", {}, label),
      palinka.make("dd", { title: palinka.exactly(value) }, palinka.number(value),
        unit ? palinka.make("small", {}, ` ${unit}`) : null), // prettier-ignore
      interval,
    );
  }

  function metrics() {
    const { overview, make } = palinka;
    if (!overview.metrics.length) return null;
    const intervals = overview.metrics.some(({ low }) => low !== null);
    return make(
      "section",
      { "aria-labelledby": "metrics-title" },
      make("h2", { id: "metrics-title" }, `Measured on ${overview.text}`),
      make("dl", { class: "metrics" }, overview.metrics.map(metric)),
      intervals
        ? make("p", { class: "note" },
            `Small: 95 % intervals over the ${palinka.count(overview.documents)} documents that were read. For more, write the atlas in a fit or validate (callback WriteAtlas) with a larger LanguageModelMetrics.contexts; null reads all.`) // prettier-ignore
        : null,
    );
  }

  function analyses() {
    const { overview, make } = palinka;
    if (!overview.analyses.length) return null;
    return make(
      "section",
      { "aria-labelledby": "analyses-title" },
      make("h2", { id: "analyses-title" }, "Analyses of this dictionary"),
      make("ul", { class: "analyses" }, overview.analyses.map(({ name, kind }, i) =>
        make("li", {}, make("a", { href: `#analysis=${i}` }, name), " ", make("small", {}, kind.replaceAll("_", " ")),
          kind === "head_scores" ? [" · ", make("a", { href: `#heads=${i}` }, "all heads")] : null))), // prettier-ignore
    );
  }

  function build() {
    const { overview, make, selection } = palinka;
    // The AUC of a category is what one wants to see beside the density; else direct effects.
    const detected = overview.columns.find(({ key }) => key.endsWith("/auc"));
    const scored = overview.columns.find(({ key }) => key.endsWith("/score"));
    const tested = overview.columns.find(({ key }) => key.endsWith("/t"));
    const other = (detected ?? scored ?? tested ?? overview.columns.find(({ key }) => key === "raises"))?.key;
    const plots = [
      palinka.columnHistogram("density"),
      palinka.scatter("density", "activation"),
      ...(other ? [palinka.scatter("density", other)] : []),
    ];
    const filters = palinka.filters();
    const table = palinka.table();
    const words = [
      `${palinka.count(overview.latents)} latents of a ${overview.autoencoder}`,
      ` at ${overview.site} of ${overview.language_model},`,
      ` measured on ${palinka.count(overview.rows)} tokens of ${overview.text}.`,
    ];
    const element = make(
      "div",
      { class: "overview" },
      make("h1", {}, "Overview"),
      make("p", { class: "lead" }, words.join("")),
      overview.notes.map((note) => make("p", { class: "note" }, note)),
      metrics(),
      analyses(),
      make(
        "section",
        { "aria-labelledby": "plots-title" },
        make("h2", { id: "plots-title" }, "Distribution"),
        make("div", { class: "plots" }, plots.map(({ figure }) => figure)),
      ),
      make(
        "section",
        { "aria-labelledby": "table-title" },
        make("h2", { id: "table-title" }, "Latents"),
        filters.element,
        table.element,
      ),
    );
    const draw = palinka.perFrame(() => {
      if (!element.isConnected) return;
      for (const part of [filters, table, ...plots]) part.draw();
    });
    selection.changed(draw);
    addEventListener("resize", draw);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    selection.loadLabels().then(draw);
    return { element, draw, table };
  }

  palinka.overviewPage = () => {
    page ??= build();
    const { scroll } = palinka.selection;
    return {
      title: "Overview",
      element: page.element,
      shown: () => {
        page.draw();
        page.table.restore(scroll);
      },
    };
  };
})();
