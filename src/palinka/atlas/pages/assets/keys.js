"use strict";
// Keys that work wherever nothing is being typed.
(() => {
  const TYPING = "input, textarea, select, [contenteditable]";

  function step(way) {
    const here = /^#latent=(\d+)$/.exec(location.hash);
    if (!here) return;
    const next = palinka.neighbors(Number(here[1]))[way];
    if (next !== null) location.hash = `latent=${next}`;
  }

  const KEYS = {
    ArrowLeft: () => step("before"),
    k: () => step("before"),
    ArrowRight: () => step("after"),
    j: () => step("after"),
    o: () => (location.hash = ""),
    "/": () => palinka.byId("search").focus(),
    "?": () => palinka.byId("help").showModal(),
  };

  palinka.startKeys = () => {
    palinka.byId("help-button").addEventListener("click", KEYS["?"]);
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || palinka.byId("help").open) return;
      if (event.target.closest?.(TYPING) || !(event.key in KEYS)) return;
      // Where something scrolls sideways, the arrows scroll.
      if (event.key.startsWith("Arrow") && event.target.closest?.(".wide, .scroller, pre")) return;
      event.preventDefault();
      KEYS[event.key]();
    });
  };
})();
