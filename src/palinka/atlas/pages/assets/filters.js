"use strict";
// What narrows the table: ranges of columns and words, each shown and taken back by itself.
(() => {
  /** The filters; `draw` brings them up to date with the selection. */
  palinka.filters = () => {
    const { selection, make, overview } = palinka;
    const chips = make("ul", { class: "chips", "aria-label": "Filters in force" });
    const count = make("p", { class: "count" });

    const column = make("select", {}, overview.columns.map(({ key }) => make("option", { value: key }, selection.named(key))));
    const low = make("input", { type: "number", step: "any", placeholder: "any" });
    const high = make("input", { type: "number", step: "any", placeholder: "any" });
    const form = make(
      "form",
      { class: "filter", onsubmit: add },
      make("label", {}, "Keep ", column),
      make("label", {}, "from ", low),
      make("label", {}, "to ", high),
      make("button", {}, "Filter"),
    );

    function add(event) {
      event.preventDefault();
      const bound = (input, otherwise) => (input.value === "" ? otherwise : Number(input.value));
      const range = [bound(low, -Infinity), bound(high, Infinity)];
      if (range.every((end) => !Number.isFinite(end))) selection.ranges.delete(column.value);
      else selection.ranges.set(column.value, range);
      selection.update();
      low.value = high.value = "";
    }

    function chip(text, remove) {
      const button = make(
        "button",
        { type: "button", "aria-label": `Take back the filter ${text}`, onclick: remove },
        "×",
      );
      return make("li", {}, make("bdi", {}, text), " ", button);
    }

    function draw() {
      const shown = [];
      if (selection.query) {
        shown.push(
          chip(`“${selection.query.text}”`, () => {
            selection.query = null;
            selection.update();
          }),
        );
      }
      for (const [key, [from, to]] of selection.ranges) {
        const ends = [from, to].map((end) => (Number.isFinite(end) ? palinka.number(end) : "…"));
        shown.push(
          chip(`${selection.column(key).label} ${ends.join(" to ")}`, () => {
            selection.ranges.delete(key);
            selection.update();
          }),
        );
      }
      if (shown.length) {
        const all = () => {
          selection.query = null;
          selection.ranges.clear();
          selection.update();
        };
        shown.push(make("li", {}, make("button", { type: "button", onclick: all }, "Show all")));
      }
      chips.replaceChildren(...shown);
      const kept = selection.order().length;
      count.textContent = selection.isWhole()
        ? palinka.plural(kept, "latent")
        : `${palinka.count(kept)} of ${palinka.plural(overview.latents, "latent")}`;
    }

    return { element: make("div", { class: "filters" }, count, chips, form), draw };
  };
})();
