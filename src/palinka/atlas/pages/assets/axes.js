"use strict";
// Axes of the plots: from values to pixels and back, with ticks at round numbers.
(() => {
  /** A scale for some values: linear, or logarithmic over the positive ones. */
  palinka.scale = (values, log) => {
    let low = Infinity;
    let high = -Infinity;
    for (const value of values) {
      if (!Number.isFinite(value) || (log && value <= 0)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    if (low > high) [low, high] = log ? [0.1, 1] : [0, 1];
    const forward = log ? Math.log10 : (value) => value;
    let [start, end] = [forward(low), forward(high)];
    const margin = (end - start) * 0.03 || 0.5;
    start -= margin;
    end += margin;
    const inverse = log ? (part) => 10 ** part : (part) => part;
    return {
      log,
      shows: (value) => Number.isFinite(value) && (!log || value > 0),
      /** 0 at the low end, 1 at the high end. */
      at: (value) => (forward(value) - start) / (end - start),
      value: (at) => inverse(start + at * (end - start)),
      ticks: (most) => (log ? logTicks(start, end, most) : linearTicks(start, end, most)),
    };
  };

  function linearTicks(start, end, most) {
    const rough = (end - start) / most;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    const ticks = [];
    for (let i = Math.ceil(start / step); i * step <= end; i++) {
      ticks.push(Number((i * step).toPrecision(12)));
    }
    return ticks;
  }

  function logTicks(start, end, most) {
    const decades = Math.floor(end) - Math.ceil(start) + 1;
    if (decades < 2) {
      return linearTicks(10 ** start, 10 ** end, most).filter((tick) => tick > 0);
    }
    const every = Math.ceil(decades / most);
    const ticks = [];
    for (let i = Math.ceil(start); i <= end; i += every) ticks.push(10 ** i);
    return ticks;
  }

  const MARGIN = { left: 60, right: 12, top: 10, bottom: 40 };

  /** A canvas as wide as its box, ready to draw on, with the colors of the page. */
  palinka.prepare = (canvas) => {
    const ratio = window.devicePixelRatio || 1;
    const { width, height } = canvas.getBoundingClientRect();
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const style = getComputedStyle(canvas);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    pen.font = `12px ${style.fontFamily}`;
    return { pen, color, area: areaOf(width, height) };
  };

  function areaOf(width, height) {
    return {
      left: MARGIN.left,
      top: MARGIN.top,
      width: Math.max(10, width - MARGIN.left - MARGIN.right),
      height: Math.max(10, height - MARGIN.top - MARGIN.bottom),
    };
  }

  /** Draws both axes; `y` is null where the bars' heights say enough. */
  palinka.drawAxes = ({ pen, color, area }, x, y, xLabel, yLabel) => {
    const bottom = area.top + area.height;
    pen.strokeStyle = color("line");
    pen.fillStyle = color("muted");
    pen.lineWidth = 1;
    pen.textAlign = "center";
    pen.textBaseline = "top";
    for (const tick of x.ticks(Math.max(2, area.width / (x.log ? 50 : 80)))) {
      const at = area.left + x.at(tick) * area.width;
      if (at < area.left || at > area.left + area.width) continue;
      line(pen, at, area.top, at, bottom);
      pen.fillText(palinka.tick(tick), at, bottom + 5);
    }
    pen.fillText(xLabel, area.left + area.width / 2, bottom + 22);
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const tick of y.ticks(Math.max(2, area.height / 50))) {
      const at = bottom - y.at(tick) * area.height;
      if (at < area.top || at > bottom) continue;
      line(pen, area.left, at, area.left + area.width, at);
      pen.fillText(palinka.tick(tick), area.left - 6, at);
    }
    pen.save();
    pen.translate(9, area.top + area.height / 2);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "center";
    pen.fillText(yLabel, 0, 0);
    pen.restore();
  };

  function line(pen, x0, y0, x1, y1) {
    pen.beginPath();
    pen.moveTo(Math.round(x0) + 0.5, Math.round(y0) + 0.5);
    pen.lineTo(Math.round(x1) + 0.5, Math.round(y1) + 0.5);
    pen.stroke();
  }
})();
