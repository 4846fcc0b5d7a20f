"use strict";
// The findings of one analysis.
(() => {
  const { make } = palinka;
  const LATENT = new Set(["latent", "unit", "best", "best_auc_unit", "most_positive", "most_negative"]);

  const WORDS = {
    best: "best latent by score",
    best_score: "its score",
    best_p_value: "p of its score",
    best_auc_unit: "best latent by AUC",
    best_auc: "its AUC",
    best_auc_p_value: "p of its AUC",
  };

  /** Names of findings and settings as words, after their part. */
  function words(name) {
    const parts = name.split("/");
    const last = parts.pop();
    const text = WORDS[last] ?? last.replace("p_value", "p").replaceAll("_", " ").replace(/\bauc\b/, "AUC");
    return [...parts, text].join(": ");
  }

  /** A figure of an analysis, with its caption. */
  function figure({ file, title, caption }, name) {
    const about = `Figure “${words(title)}” of the analysis ${name}. ${caption} Its numbers are in the tables of this page.`;
    const source = `figures/${encodeURIComponent(file)}`;
    return make(
      "figure",
      { class: "drawn" },
      make("a", { href: source, title: "open at full size" }, make("img", { src: source, alt: about })),
      make("figcaption", {}, make("strong", {}, words(title)), caption ? ` ${caption}` : ""),
    );
  }

  palinka.analysisFigure = figure;

  const isLatent = (heading, text) =>
    LATENT.has(heading) && /^\d+$/.test(text) && Number(text) < palinka.overview.latents;

  function cell(heading, text) {
    if (isLatent(heading, text)) return make("td", {}, make("a", { href: `#latent=${text}` }, text));
    const number = text === "" ? NaN : Number(text);
    return Number.isNaN(number)
      ? make("td", { class: "words" }, make("bdi", {}, text))
      : make("td", { title: text }, palinka.number(number));
  }

  function table({ name, rows: [head, ...rows] }, ofLatents) {
    return make(
      "details",
      { open: rows.length <= 30 },
      make("summary", {}, `${words(name)} (${palinka.plural(rows.length, "row")})`),
      make(
        "div",
        { class: "wide", tabindex: 0, role: "group", "aria-label": name },
        make(
          "table",
          { class: "plain" },
          make("thead", {}, make("tr", {}, head.map((text) => make("th", { scope: "col" }, words(text))))),
          make("tbody", {}, rows.map((row) =>
            make("tr", {}, row.map((text, i) => cell(ofLatents ? head[i] : "", text))))), // prettier-ignore
        ),
      ),
    );
  }

  function scalars(pairs, ofLatents) {
    return make("dl", { class: "metrics" }, pairs.map(([name, value, low = null, high = null]) => {
      const last = name.split("/").at(-1);
      const text = value === null ? "–" : String(value);
      const shown = ofLatents && isLatent(last, text)
        ? make("a", { href: `#latent=${text}` }, text)
        : palinka.number(value);
      const interval = low === null ? null : palinka.interval(low, high, "");
      return make("div", {}, make("dt", {}, words(name)), make("dd", { title: palinka.exactly(value) }, shown), interval);
    })); // prettier-ignore
  }

  function section(title, ...content) {
    return make("section", {}, make("h2", {}, title), ...content);
  }

  /** The page of an analysis. */
  palinka.analysisPage = async (number) => {
    const found = await palinka.load(`analysis-${number}`);
    const settings = found.settings.filter(([name]) => name !== "analysis");
    const kind = found.settings.find(([name]) => name === "analysis")?.[1];
    const ofLatents = found.settings.some(([name, value]) => name === "units" && value === "latents");
    const element = make(
      "article",
      { class: "analysis" },
      make("h1", {}, found.name),
      kind ? make("p", { class: "lead" }, words(kind)) : null,
      kind === "head_scores" ? make("p", {}, make("a", { href: `#heads=${number}` }, "All heads, to sort")) : null,
      found.notes.map(([part, text]) => make("p", { class: "note" }, part ? `${part}: ${text}` : text)),
      found.scalars.length ? section("Findings", scalars(found.scalars, ofLatents)) : null,
      found.figures.length
        ? section("Figures", make("div", { class: "figures" }, found.figures.map((each) => figure(each, found.name))))
        : null,
      found.tables.length
        ? section("Tables", found.tables.filter(({ rows }) => rows.length).map((each) => table(each, ofLatents)))
        : null,
      found.summary ? section("Stimuli", make("pre", { tabindex: 0 }, found.summary)) : null,
      settings.length
        ? section(
            "Settings",
            make("dl", { class: "settings" }, settings.map(([name, value]) =>
              make("div", {}, make("dt", {}, words(name)), make("dd", {}, value)))), // prettier-ignore
          )
        : null,
    );
    return { title: found.name, element, shown: () => {} };
  };
})();
