"use strict";
// The table of latents. Of thousands of rows only those in sight are there.
(() => {
  const ROW = 30; // pixels, as in the style sheet
  const BEYOND = 8; // rows above and below what is seen

  /** The table; `draw` brings it up to date with the selection. */
  palinka.table = () => {
    const { selection, make, overview } = palinka;
    const keys = ["latent", ...overview.columns.map((column) => column.key)];
    const head = make("tr", { "aria-rowindex": 1 });
    const body = make("tbody");
    const table = make(
      "table",
      { class: "latents", "aria-colcount": keys.length + 1 },
      make("caption", { class: "hidden" }, "Latents; arrow keys choose one, Enter opens it"),
      make("thead", {}, head),
      body,
    );
    const scroller = make("div", { class: "scroller", tabindex: 0, role: "group",
      "aria-label": "Table of latents" }, table); // prettier-ignore
    let active = 0; // place in the order
    const headings = new Map();

    for (const key of keys) {
      const { label, unit, about } = selection.column(key);
      const tell = () => palinka.showTip(button.getBoundingClientRect(), about, make("small", {}, unit));
      const button = make("button", { type: "button", "aria-description": about, onclick: () => sortBy(key),
        onpointerenter: tell, onfocus: tell, onpointerleave: palinka.hideTip, onblur: palinka.hideTip }, label); // prettier-ignore
      const cell = make("th", { scope: "col" }, button, make("small", {}, unit));
      headings.set(key, cell);
      head.append(cell);
      if (key === "latent") head.append(make("th", { scope: "col", class: "words" }, "label", make("small", {}, "tokens")));
    }

    function sortBy(key) {
      const { sort } = selection;
      // Numbers of latents go up at first, everything else goes down.
      const descending = sort.key === key ? !sort.descending : key !== "latent";
      selection.sort = { key, descending };
      scroller.scrollTop = 0;
      active = 0;
      selection.update();
      const way = descending ? "descending" : "ascending";
      palinka.say(`sorted by ${selection.column(key).label}, ${way}`);
    }

    function row(place) {
      const latent = selection.order()[place];
      const link = make("a", { href: `#latent=${latent}`, tabindex: -1 }, String(latent));
      const words = selection.labels?.[latent] ?? "";
      return make(
        "tr",
        { "aria-rowindex": place + 2, class: place === active ? "active" : null,
          onclick: (event) => event.target.closest("a") || open(latent) }, // prettier-ignore
        make("th", { scope: "row" }, link),
        make("td", { class: "words", title: words }, make("bdi", {}, words)),
        keys.slice(1).map((key) => make("td", {}, palinka.number(selection.values(key)[latent]))),
      );
    }

    const open = (latent) => {
      location.hash = `latent=${latent}`;
    };

    const gap = (rows) => {
      const cell = make("td", { colspan: keys.length + 1 });
      cell.style.height = `${rows * ROW}px`;
      return make("tr", { class: "gap", "aria-hidden": "true" }, rows > 0 ? cell : null);
    };

    function rows() {
      const count = selection.order().length;
      const seen = Math.ceil((scroller.clientHeight || 600) / ROW);
      const first = Math.max(0, Math.floor(scroller.scrollTop / ROW) - BEYOND);
      const last = Math.min(count, first + seen + 2 * BEYOND);
      const shown = [];
      for (let place = first; place < last; place++) shown.push(row(place));
      body.replaceChildren(gap(first), ...shown, gap(count - last));
      selection.scroll = scroller.scrollTop;
    }

    function draw() {
      const { sort } = selection;
      active = Math.min(active, Math.max(0, selection.order().length - 1));
      for (const [key, cell] of headings) {
        const way = sort.descending ? "descending" : "ascending";
        cell.setAttribute("aria-sort", key === sort.key ? way : "none");
      }
      table.setAttribute("aria-rowcount", selection.order().length + 1);
      rows();
    }

    function move(by) {
      active = Math.min(Math.max(0, active + by), selection.order().length - 1);
      const top = active * ROW;
      const room = scroller.clientHeight - 2 * ROW;
      if (top < scroller.scrollTop) scroller.scrollTop = top;
      if (top > scroller.scrollTop + room) scroller.scrollTop = top - room;
      rows();
      const latent = selection.order()[active];
      palinka.say(`latent ${latent}: ${selection.labels?.[latent] ?? ""}`);
    }

    scroller.addEventListener("scroll", palinka.perFrame(rows), { passive: true });
    scroller.addEventListener("keydown", (event) => {
      const page = Math.floor(scroller.clientHeight / ROW) - 2;
      const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
      if (event.target !== scroller || !selection.order().length) return;
      if (event.key in steps) {
        event.preventDefault();
        move(steps[event.key]);
      } else if (event.key === "Enter") {
        open(selection.order()[active]);
      }
    });
    return { element: scroller, draw, restore: (top) => (scroller.scrollTop = top) };
  };
})();
