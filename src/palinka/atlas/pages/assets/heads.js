"use strict";
// All attention heads: a map and a column of each score, and patterns of the strongest.
(() => {
  const { make, svg } = palinka;

  const sides = (low, high) => (low === null ? null : `${palinka.number(low)} to ${palinka.number(high)}`);

  /** Interval and p of one head, as far as there are any. */
  const certainty = ({ low, high, p_corrected: p }, layer, head) =>
    [sides(low[layer][head], high[layer][head]), p[layer][head] === null ? null : `p ${palinka.number(p[layer][head])}`]
      .filter((text) => text !== null)
      .map((text) => make("small", {}, text));

  /** A map, layer 0 at the bottom as in figures; `choose` is called with a layer and a head. */
  function map(score, choose) {
    const layers = score.score.length;
    const all = score.score.flat();
    const most = Math.max(...all, 1e-12);
    const [layer, head] = place(score, all.indexOf(Math.max(...all)));
    const about = `L${layer}H${head} ${palinka.number(most)}`;
    const isSure = (i) => score.significant[place(score, i)[0]][place(score, i)[1]];
    const cells = all.map((value, i) => {
      const at = place(score, i);
      const tell = (event) =>
        palinka.showTip(event.target.getBoundingClientRect(), `L${at[0]}H${at[1]}: ${palinka.number(value)} ${score.unit}`, ...certainty(score, ...at));
      return svg("rect", { x: at[1], y: layers - 1 - at[0], width: 1, height: 1, "fill-opacity": Math.max(0, value / most),
        class: isSure(i) ? "sure" : null,
        onpointerenter: tell, onpointerleave: palinka.hideTip, onclick: () => choose(...at) }); // prettier-ignore
    });
    return make(
      "figure",
      { class: "map" },
      make("figcaption", {}, make("button", { type: "button", class: "pick", onclick: () => choose() }, score.name), make("small", {}, about)),
      svg("svg", { viewBox: `0 0 ${score.score[0].length} ${layers}`, preserveAspectRatio: "none", role: "img",
        "aria-label": `Map of ${score.name}: highest in ${about}` },
        cells.filter((_, i) => !isSure(i)), cells.filter((_, i) => isSure(i))), // outlines in front; prettier-ignore
    );
  }

  const place = ({ score }, i) => [Math.floor(i / score[0].length), i % score[0].length];

  /** The table of all heads; `sort` orders it by a heading, the other way if it was by that. */
  function table(scores) {
    const body = make("tbody");
    const rows = scores[0].score.flat().map((_, i) => {
      const [layer, head] = place(scores[0], i);
      const values = scores.map(({ score }) => score[layer][head]);
      const element = make("tr", {},
        make("th", { scope: "row" }, `L${layer}H${head}`),
        scores.map((score, s) =>
          make("td", { class: score.significant[layer][head] ? "sure" : null, title: palinka.exactly(values[s]) },
            palinka.number(values[s]), certainty(score, layer, head)))); // prettier-ignore
      return { element, values: [-i, ...values] };
    });
    let by = { column: -1, descending: true };
    function sort(column, descending = by.column !== column || !by.descending) {
      by = { column, descending };
      const way = descending ? 1 : -1;
      rows.sort((a, b) => way * (b.values[column] - a.values[column]) || b.values[0] - a.values[0]);
      body.replaceChildren(...rows.map(({ element }) => element));
      headings.forEach((heading, i) =>
        heading.setAttribute("aria-sort", i === column ? (descending ? "descending" : "ascending") : "none"));
    } // prettier-ignore
    const headings = ["head", ...scores].map((score, i) => {
      const { name = "head", about = "layer and head", unit = "" } = score;
      const tell = () => palinka.showTip(button.getBoundingClientRect(), about, make("small", {}, unit));
      const button = make("button", { type: "button", "aria-description": about, onclick: () => sort(i),
        onpointerenter: tell, onfocus: tell, onpointerleave: palinka.hideTip, onblur: palinka.hideTip }, name); // prettier-ignore
      return make("th", { scope: "col" }, button, make("small", {}, unit));
    });
    sort(1, true);
    const element = make("div", { class: "wide", tabindex: 0, role: "group", "aria-label": "Table of heads" },
      make("table", { class: "plain heads" }, make("thead", {}, make("tr", {}, headings)), body)); // prettier-ignore
    const show = (column, layer, head) => {
      const found = rows.find(({ values }) => values[0] === -(layer * scores[0].score[0].length + head));
      for (const row of rows) row.element.classList.toggle("active", row === found);
      found.element.children[column].scrollIntoView({ block: "center", inline: "center" });
    };
    return { element, sort, show };
  }

  /** The page of the heads that an analysis scored. */
  palinka.headsPage = async (number) => {
    const [{ scores, level }, found] = await Promise.all([palinka.load(`heads-${number}`), palinka.load(`analysis-${number}`)]);
    const all = table(scores);
    const choose = (column) => (...at) => {
      all.sort(column, true);
      if (at.length) all.show(column, ...at);
      else all.element.scrollIntoView();
    };
    const patterns = found.figures.filter(({ title }) => title === "patterns");
    const element = make(
      "article",
      {},
      make("h1", {}, "Attention heads"),
      make("p", { class: "lead" },
        `${palinka.plural(scores[0].score.flat().length, "head")} of ${palinka.overview.language_model} on the texts of `,
        make("a", { href: `#analysis=${number}` }, found.name),
        ". A score describes where a head attends; what it does to predictions is for an ablation to show."), // prettier-ignore
      make("h2", {}, "Maps"),
      make("p", { class: "note" },
        "Rows are layers, the first at the bottom, and columns heads; the strongest color is the highest score of a map. Outlined: significantly more than a head that attends to all tokens alike, and for duplicate token and induction, than in random tokens without repetition, corrected for all heads. A click shows the head in the table."), // prettier-ignore
      make("div", { class: "maps" }, scores.map((score, i) => map(score, choose(i + 1)))),
      make("h2", {}, "All heads"),
      make("p", { class: "note" }, `Small: the ${100 * level} % interval over texts, and p corrected for all heads. Bold: significantly more than the reference.`),
      all.element,
      patterns.length ? make("h2", {}, "Patterns of the highest heads") : null,
      make("div", { class: "figures" }, patterns.map((each) => palinka.analysisFigure(each, found.name))),
    );
    return { title: "Attention heads", element, shown: () => {} };
  };
})();
