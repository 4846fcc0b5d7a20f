"use strict";
// Histograms: of one column over all latents, with the chosen ones in front; of one latent.
(() => {
  const BINS = 48;

  /** A plot of how many latents have which value; dragging selects. */
  palinka.columnHistogram = (key) => {
    const { selection } = palinka;
    const { label, log } = selection.column(key);
    const values = selection.values(key);
    const x = palinka.scale(values, log);
    const canvas = palinka.make("canvas", { role: "img", "aria-label": `Histogram of ${label}` });
    const box = palinka.make("div", { class: "plot", tabindex: 0, role: "group", "aria-label": "Histogram; drag to select, Escape takes the selection back" }, canvas);
    const caption = palinka.make("figcaption", {});
    let area = null;

    function counts(mask) {
      const found = new Uint32Array(BINS);
      for (let i = 0; i < values.length; i++) {
        if (mask && !mask[i]) continue;
        if (x.shows(values[i])) found[Math.min(BINS - 1, Math.floor(x.at(values[i]) * BINS))]++;
      }
      return found;
    }
    const all = counts(null);
    const y = palinka.scale([0, Math.max(...all)], false);

    function draw() {
      const drawing = palinka.prepare(canvas);
      area = drawing.area;
      palinka.drawAxes(drawing, x, y, label, "latents");
      bars(drawing, all, y, "faint");
      bars(drawing, selection.isWhole() ? all : counts(selection.mask()), y, "accent");
      const shown = all.reduce((sum, count) => sum + count, 0);
      const left = values.length - shown;
      caption.textContent =
        `${palinka.plural(shown, "latent")}` +
        (left ? `; ${palinka.count(left)} never active` : "") +
        ". Drag to select.";
      canvas.setAttribute("aria-label", `Histogram of ${label} over ${caption.textContent}`);
    }

    palinka.brush({
      box,
      flat: true,
      area: () => area,
      done: ([x0, x1]) => {
        selection.ranges.set(key, [x.value(x0), x.value(x1)]);
        selection.update();
      },
      click: () => {},
      clear: () => selection.ranges.delete(key) && selection.update(),
    });
    return { figure: palinka.make("figure", {}, box, caption), draw };
  };

  function bars({ pen, color, area }, counts, y, name) {
    pen.fillStyle = color(name);
    const width = area.width / counts.length;
    const floor = area.top + area.height * (1 - y.at(0));
    counts.forEach((count, bin) => {
      if (!count) return;
      const height = Math.max(1.5, (y.at(count) - y.at(0)) * area.height);
      pen.fillRect(area.left + bin * width + 0.5, floor - height, Math.max(1, width - 1), height);
    });
  }

  /** The activations of one latent, as an SVG that says its numbers. */
  palinka.activationHistogram = ({ width, counts }) => {
    const { svg } = palinka;
    const total = counts.reduce((sum, count) => sum + count, 0);
    const most = Math.max(...counts, 1);
    const end = width * counts.length;
    const [wide, high] = [360, 120];
    const bar = wide / Math.max(1, counts.length);
    const label =
      `Histogram of ${palinka.plural(total, "activation")} between 0 and ${palinka.number(end)};` +
      ` the fullest bin holds ${palinka.count(most)}.`;
    const drawn = svg(
      "svg",
      { viewBox: `0 0 ${wide} ${high + 18}`, role: "img", "aria-label": label, class: "bars" },
      counts.map((count, bin) => {
        // Square roots, so that the few strong activations are seen beside the many weak ones.
        const height = Math.sqrt(count / most) * high;
        const [low, up] = [bin * width, (bin + 1) * width].map(palinka.number);
        return svg(
          "rect",
          { x: bin * bar + 0.5, y: high - height, width: Math.max(0.5, bar - 1), height },
          svg("title", {}, `${low} to ${up}: ${palinka.plural(count, "token")}`),
        );
      }),
      svg("line", { x1: 0, y1: high, x2: wide, y2: high }),
      [0, 0.5, 1].map((part) =>
        svg(
          "text",
          { x: part * wide, y: high + 13, "text-anchor": ["start", "middle", "end"][part * 2] },
          palinka.number(part * end),
        ),
      ),
    );
    const caption = "Heights are square roots of counts.";
    return palinka.make("figure", {}, drawn, palinka.make("figcaption", {}, caption));
  };
})();
