"use strict";
// Numbers as people read them.
(() => {
  const MINUS = "−";

  /** About three significant digits. */
  palinka.number = (value) => {
    if (value === null || !Number.isFinite(value)) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    const text =
      size >= 1e5 || size < 1e-3
        ? Number(size.toPrecision(3)).toExponential().replace("e-", `e${MINUS}`).replace("e+", "e")
        : size >= 100
          ? Math.round(size).toLocaleString("en-US")
          : Number.isInteger(size)
            ? String(size)
            : size.toFixed(size >= 10 ? 1 : size >= 1 ? 2 : 3);
    return (value < 0 ? MINUS : "") + text;
  };

  /** A round number on an axis. */
  palinka.tick = (value) =>
    value !== 0 && (Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3)
      ? palinka.number(value)
      : Number(value.toPrecision(6)).toLocaleString("en-US").replace("-", MINUS);

  /** Every digit that is known. */
  palinka.exactly = (value) =>
    value === null || !Number.isFinite(value)
      ? "no value"
      : Number(value.toPrecision(5)).toString().replace("-", MINUS);

  /** An interval below its number. */
  palinka.interval = (low, high, over) =>
    palinka.make("dd", { class: "interval", title: `95 % interval${over}` },
      `${palinka.number(low)} to ${palinka.number(high)}`); // prettier-ignore

  palinka.count = (value) => value.toLocaleString("en-US");

  /** "1 latent", "2 latents". */
  palinka.plural = (count, noun) => `${palinka.count(count)} ${noun}${count === 1 ? "" : "s"}`;
})();
