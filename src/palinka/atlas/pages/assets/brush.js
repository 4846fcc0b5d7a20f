"use strict";
// Dragging over a plot selects; a click is a click.
(() => {
  const DRAG = 4; // pixels; less is a trembling hand

  /**
   * Lets a box be drawn over a canvas.
   *
   * @param box The element around the canvas.
   * @param flat Whether only the horizontal extent counts.
   * @param area Gives the plotted area, in pixels of the canvas.
   * @param done Is given [x0, x1, y0, y1] as shares of the area, from the lower left.
   * @param click Is given the place of a click, in pixels of the canvas.
   * @param clear Is called on Escape.
   */
  palinka.brush = ({ box, flat, area, done, click, clear }) => {
    const shown = palinka.make("div", { class: "brush", hidden: true });
    box.append(shown);
    let from = null;

    const place = (event) => {
      const { left, top } = box.getBoundingClientRect();
      return [event.clientX - left, event.clientY - top];
    };
    const clamped = ([x, y]) => {
      const { left, top, width, height } = area();
      return [
        Math.min(Math.max(x, left), left + width),
        Math.min(Math.max(y, top), top + height),
      ];
    };

    function draw(to) {
      const [x0, y0] = clamped(from);
      const [x1, y1] = clamped(to);
      const { top, height } = area();
      shown.hidden = false;
      shown.style.left = `${Math.min(x0, x1)}px`;
      shown.style.width = `${Math.abs(x1 - x0)}px`;
      shown.style.top = `${flat ? top : Math.min(y0, y1)}px`;
      shown.style.height = `${flat ? height : Math.abs(y1 - y0)}px`;
    }

    const isDrag = (to) => Math.hypot(to[0] - from[0], to[1] - from[1]) >= DRAG;

    box.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      from = place(event);
      box.setPointerCapture(event.pointerId);
    });
    box.addEventListener("pointermove", (event) => {
      if (from && isDrag(place(event))) draw(place(event));
    });
    box.addEventListener("pointercancel", () => {
      from = null;
      shown.hidden = true;
    });
    box.addEventListener("pointerup", (event) => {
      if (!from) return;
      const to = place(event);
      if (isDrag(to)) {
        const { left, top, width, height } = area();
        const [x0, y0] = clamped(from);
        const [x1, y1] = clamped(to);
        const xs = [(x0 - left) / width, (x1 - left) / width].sort((a, b) => a - b);
        const ys = [y0, y1].map((y) => 1 - (y - top) / height).sort((a, b) => a - b);
        shown.hidden = true;
        done([...xs, ...ys]);
      } else {
        shown.hidden = true;
        click(to);
      }
      from = null;
    });
    box.addEventListener("keydown", (event) => {
      if (event.key === "Escape") clear();
    });
  };
})();
