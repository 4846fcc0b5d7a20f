"use strict";
// The search box: what is most active at a token, and labels, in one list.
(() => {
  const { make, byId, selection } = palinka;
  const TOKENS = 4; // tokens that a word finds
  const EACH = 4; // latents of each; more of a single one
  const MOST = 10;

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

    /** Headings and options of a query: its number, then its tokens' latents, then labels. */
    function results(query, tokens, labeled, missing) {
      options = [];
      const shown = [];
      const heading = (...content) =>
        shown.push(make("li", { class: "group", role: "presentation" }, content));
      const add = (choose, ...content) => {
        options.push(option(options.length, choose, ...content));
        shown.push(options.at(-1).element);
      };
      const label = (latent) => [make("b", {}, String(latent)), " ", make("bdi", {}, selection.labels[latent])];
      for (const word of missing)
        heading(`“${word}” does not occur in the ${palinka.count(palinka.overview.rows)} measured tokens`);
      const found = new Set();
      for (const { text, count, latents } of tokens) {
        heading("at ", make("bdi", { class: "piece" }, text), ` ${palinka.plural(count, "occurrence")} in the text`);
        for (const { latent, mean, max } of latents.slice(0, tokens.length === 1 ? MOST : EACH)) {
          const numbers = `mean ${palinka.number(mean)} · max ${palinka.number(max)}`;
          add(() => open(latent), label(latent), make("small", {}, numbers));
        }
        for (const { latent } of latents) found.add(latent);
      }
      const others = labeled.filter((latent) => !found.has(latent));
      if (others.length) heading(tokens.length ? "other numbers, labels and raised tokens" : "numbers, labels and raised tokens");
      for (const latent of others.slice(0, MOST)) {
        const reason = selection.reason(latent, query);
        add(() => open(latent), label(latent), make("small", {}, reason ? `raises ${reason}` : ""));
      }
      for (const latent of others) found.add(latent);
      if (found.size) {
        const all = `Show ${palinka.plural(found.size, "latent")} in the table`;
        add(() => showAll({ text: query, latents: [...found] }), make("i", {}, all));
      }
      palinka.say(found.size ? `${found.size} found` : "nothing found");
      return shown;
    }

    async function search() {
      const query = input.value.trim();
      if (!query) return close();
      const words = /^#?\d+$/.test(query) ? [] : query.split(/\s+/);
      const most = words.length > 1 ? 1 : TOKENS;
      const ofWords = Promise.all(words.map((word) => palinka.tokensOf(word, most)));
      const [tokens] = await Promise.all([ofWords, selection.loadLabels()]);
      if (input.value.trim() !== query) return; // typed on
      const missing = words.filter((_, i) => !tokens[i].length);
      const shown = results(query, tokens.flat(), selection.find(query), missing);
      if (!options.length) shown.push(make("li", { class: "nothing" }, "Nothing found"));
      list.replaceChildren(...shown);
      list.hidden = false;
      input.setAttribute("aria-expanded", "true");
      active = -1;
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
