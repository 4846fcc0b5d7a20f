"use strict";
// A point for each latent; dragging selects, a click opens.
(() => {
  const NEAR = 8; // pixels

  /** A plot of two columns, which can be chosen. */
  palinka.scatter = (xKey, yKey) => {
    const { selection, make } = palinka;
    const keys = { x: xKey, y: yKey };
    const canvas = make("canvas", { role: "img", "aria-label": "Scatter" });
    const box = make("div", { class: "plot", tabindex: 0, role: "group", "aria-label": "Scatter; drag to select, Escape takes the selection back" }, canvas);
    const caption = make("figcaption", {});
    let area = null;
    let scales = null;
    let points = null; // pixels of each latent; NaN for those that are not shown

    function rescale() {
      scales = {};
      for (const axis of ["x", "y"]) {
        scales[axis] = palinka.scale(selection.values(keys[axis]), selection.column(keys[axis]).log);
      }
    }

    function draw() {
      const drawing = palinka.prepare(canvas);
      const { pen, color } = drawing;
      area = drawing.area;
      const labels = [keys.x, keys.y].map(selection.named);
      palinka.drawAxes(drawing, scales.x, scales.y, ...labels);
      const [xs, ys] = [selection.values(keys.x), selection.values(keys.y)];
      const mask = selection.mask();
      const count = xs.length;
      points = new Float32Array(2 * count).fill(NaN);
      let shown = 0;
      const size = count > 5000 ? 1.6 : 2.6;
      for (const chosen of [0, 1]) {
        pen.fillStyle = color(chosen ? "accent" : "faint");
        pen.globalAlpha = chosen ? (count > 5000 ? 0.5 : 0.65) : 0.8;
        for (let i = 0; i < count; i++) {
          if (mask[i] !== chosen || !scales.x.shows(xs[i]) || !scales.y.shows(ys[i])) continue;
          const px = area.left + scales.x.at(xs[i]) * area.width;
          const py = area.top + (1 - scales.y.at(ys[i])) * area.height;
          points[2 * i] = px;
          points[2 * i + 1] = py;
          pen.fillRect(px - size / 2, py - size / 2, size, size);
          shown++;
        }
      }
      pen.globalAlpha = 1;
      const left = count - shown;
      caption.textContent =
        `${palinka.plural(shown, "latent")}` +
        (left ? `; ${palinka.count(left)} without a value on these axes` : "") +
        ". Drag to select, click to open.";
      canvas.setAttribute(
        "aria-label",
        `Scatter of ${labels[1]} against ${labels[0]}: ${caption.textContent}` +
          " The filters below select by numbers.",
      );
    }

    function nearest([x, y]) {
      let best = -1;
      let least = NEAR * NEAR;
      for (let i = 0; points && i < points.length / 2; i++) {
        const distance = (points[2 * i] - x) ** 2 + (points[2 * i + 1] - y) ** 2;
        if (distance < least) [best, least] = [i, distance];
      }
      return best;
    }

    function choose(axis) {
      const other = axis === "x" ? "across" : "up";
      const options = palinka.overview.columns.map((column) =>
        make("option", { value: column.key, selected: column.key === keys[axis] }, column.label),
      );
      const change = (event) => {
        keys[axis] = event.target.value;
        rescale();
        draw();
      };
      return make("label", {}, `${other} `, make("select", { onchange: change }, options));
    }

    palinka.brush({
      box,
      flat: false,
      area: () => area,
      done: ([x0, x1, y0, y1]) => {
        selection.ranges.set(keys.x, [scales.x.value(x0), scales.x.value(x1)]);
        selection.ranges.set(keys.y, [scales.y.value(y0), scales.y.value(y1)]);
        selection.update();
      },
      click: (place) => {
        const latent = nearest(place);
        if (latent >= 0) location.hash = `latent=${latent}`;
      },
      clear: () => {
        if (selection.ranges.delete(keys.x) | selection.ranges.delete(keys.y)) selection.update();
      },
    });
    box.addEventListener("pointermove", (event) => {
      const { left, top } = box.getBoundingClientRect();
      const latent = event.buttons ? -1 : nearest([event.clientX - left, event.clientY - top]);
      if (latent < 0) return palinka.hideTip();
      const at = { left: event.clientX + 8, top: event.clientY - 8, bottom: event.clientY + 8 };
      palinka.showTip(at, `latent ${latent}`, make("small", {}, selection.labels?.[latent] ?? ""));
    });
    box.addEventListener("pointerleave", palinka.hideTip);

    rescale();
    const figure = make(
      "figure",
      {},
      make("p", { class: "choices" }, choose("x"), choose("y")),
      box,
      caption,
    );
    return { figure, draw };
  };
})();
