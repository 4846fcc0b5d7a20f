"use strict";
// Histograms: of one column over all latents, with the chosen ones in front; of one latent.
(() => {
  const BINS = 48;

  /** A plot of how many latents have which value; dragging selects. */
  palinka.columnHistogram = (key) => {
    const { selection } = palinka;
    const { log } = selection.column(key);
    const label = selection.named(key);
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

  /** A histogram as an SVG with its numbers as a label; `shape` of a share of the fullest bin is its height. */
  function drawn({ start, width, counts, label, noun, shape }) {
    const { svg } = palinka;
    const most = Math.max(...counts, 1);
    const [wide, high] = [360, 120];
    const bar = wide / Math.max(1, counts.length);
    return svg(
      "svg",
      { viewBox: `0 0 ${wide} ${high + 18}`, role: "img", "aria-label": label, class: "bars" },
      counts.map((count, bin) => {
        const height = shape(count / most) * high;
        const [low, up] = [bin, bin + 1].map((edge) => palinka.number(start + edge * width));
        return svg(
          "rect",
          { x: bin * bar + 0.5, y: high - height, width: Math.max(0.5, bar - 1), height },
          svg("title", {}, `${low} to ${up}: ${palinka.plural(count, noun)}`),
        );
      }),
      svg("line", { x1: 0, y1: high, x2: wide, y2: high }),
      [0, 0.5, 1].map((part) =>
        svg(
          "text",
          { x: part * wide, y: high + 13, "text-anchor": ["start", "middle", "end"][part * 2] },
          palinka.tick(Number((start + part * width * counts.length).toPrecision(3))),
        ),
      ),
    );
  }

  /** The activations of one latent. */
  palinka.activationHistogram = ({ width, counts }) => {
    const total = counts.reduce((sum, count) => sum + count, 0);
    const label =
      `Histogram of ${palinka.plural(total, "activation")} between 0 and ${palinka.number(width * counts.length)};` +
      ` the fullest bin holds ${palinka.count(Math.max(...counts, 0))}.`;
    // Square roots, so that the few strong activations are seen beside the many weak ones.
    const bars = drawn({ start: 0, width, counts, label, noun: "token", shape: Math.sqrt });
    return palinka.make("figure", {}, bars, palinka.make("figcaption", {}, "Activation; heights are square roots of token counts."));
  };

  /** The cosines of matched latents. */
  palinka.cosineHistogram = (cosines) => {
    const bins = 40;
    const start = Math.min(0, Math.floor(Math.min(...cosines) * 10) / 10);
    const width = (1 - start) / bins;
    const counts = new Array(bins).fill(0);
    for (const cosine of cosines) counts[Math.min(bins - 1, Math.floor((cosine - start) / width))]++;
    const label = `Histogram of ${palinka.plural(cosines.length, "cosine")} of matched latents.`;
    const bars = drawn({ start, width, counts, label, noun: "pair", shape: (share) => share });
    const caption = `Cosine of matched latents; the fullest bin holds ${palinka.plural(Math.max(...counts), "pair")}.`;
    return palinka.make("figure", {}, bars, palinka.make("figcaption", {}, caption));
  };
})();
