"use strict";
// The search box: numbers, words and tokens, with a list of what is found.
(() => {
  const { make, byId, selection } = palinka;
  const MOST = 12;

  palinka.startSearch = () => {
    const input = byId("search");
    const list = byId("results");
    let options = [];
    let active = -1;

    function close() {
      list.hidden = true;
      input.setAttribute("aria-expanded", "false");
      input.removeAttribute("aria-activedescendant");
      active = -1;
    }

    function mark(place) {
      active = (place + options.length) % options.length;
      options.forEach(({ element }, i) => element.setAttribute("aria-selected", String(i === active)));
      input.setAttribute("aria-activedescendant", options[active].element.id);
      options[active].element.scrollIntoView({ block: "nearest" });
    }

    function option(place, choose, ...content) {
      const element = make("li", { id: `result-${place}`, role: "option", "aria-selected": "false",
        onpointerdown: (event) => event.preventDefault(), onclick: choose }, content); // prettier-ignore
      return { element, choose };
    }

    function open(latent) {
      close();
      input.value = "";
      input.blur();
      location.hash = `latent=${latent}`;
    }

    function showAll(query) {
      close();
      input.value = "";
      selection.query = query;
      selection.update();
      location.hash = "";
      byId("main").focus();
    }

    async function search() {
      const query = input.value.trim();
      if (!query) return close();
      await selection.loadLabels();
      if (input.value.trim() !== query) return; // typed on
      const found = selection.find(query);
      options = found.slice(0, MOST).map((latent, place) =>
        option(place, () => open(latent), make("b", {}, String(latent)), " ",
          make("bdi", {}, selection.labels[latent]), " ",
          make("bdi", { class: "reason" }, selection.reason(latent, query)))); // prettier-ignore
      if (found.length) {
        const all = `Show ${palinka.plural(found.length, "latent")} in the table`;
        options.push(option(options.length, () => showAll(query), make("i", {}, all)));
      }
      const nothing = make("li", { class: "nothing" }, "Nothing found");
      list.replaceChildren(...(options.length ? options.map(({ element }) => element) : [nothing]));
      list.hidden = false;
      input.setAttribute("aria-expanded", "true");
      active = -1;
      palinka.say(found.length ? `${found.length} found` : "nothing found");
    }

    input.addEventListener("input", search);
    input.addEventListener("blur", close);
    input.addEventListener("keydown", async (event) => {
      if (event.key === "Escape") {
        close();
      } else if (event.key === "Enter" && input.value.trim()) {
        event.preventDefault();
        if (list.hidden) await search();
        options[Math.max(0, active)]?.choose();
      } else if (event.key === "ArrowDown" && options.length && !list.hidden) {
        event.preventDefault();
        mark(active + 1);
      } else if (event.key === "ArrowUp" && options.length && !list.hidden) {
        event.preventDefault();
        mark(active < 0 ? options.length - 1 : active - 1);
      }
    });
  };
})();
