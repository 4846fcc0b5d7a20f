"use strict";
// Text of one's own, where a server of this computer answers for the model.
(() => {
  const { make } = palinka;
  const WORDS = new Set(["at", "label", "latents"]); // columns of text
  const SHOWN = 200; // active latents listed at first
  let page = null;

  const isServed = () => "served" in document.documentElement.dataset;

  async function ask(question) {
    const answer = await fetch("api/latents", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(question),
    });
    const value = await answer.json();
    if (!answer.ok) throw new Error(value.error);
    return value;
  }

  function unserved() {
    const folder = location.protocol === "file:" ? decodeURIComponent(new URL(".", location).pathname) : "atlas/";
    const quoted = /^[\w./-]+$/.test(folder) ? folder : `'${folder.replaceAll("'", "'\\''")}'`;
    return make(
      "article",
      {},
      make("h1", {}, "Your own text"),
      make("p", {}, "These pages were opened from files, and no model is behind them. To type text and see every latent on it, run"),
      make("pre", { tabindex: 0 }, `palinka atlas serve --ckpt_path last --atlas ${quoted}`),
      make("p", {}, "and open the address that it prints. It answers this computer only. ",
        make("code", {}, "last"), " is the checkpoint of the last run here: if these pages are of another one, give its file, a ", make("code", {}, ".ckpt"), ", instead."), // prettier-ignore
    );
  }

  function build() {
    const box = make("textarea", { id: "own", rows: 4, spellcheck: "false", placeholder: "Type or paste a sentence or a paragraph" });
    const button = make("button", {}, "Show latents");
    const message = make("p", { role: "alert" });
    const results = make("div", { class: "results" });
    const form = make("form", { class: "own", onsubmit: submit }, make("label", { for: "own" }, "Text"), box, button);

    async function submit(event) {
      event.preventDefault();
      message.textContent = "";
      button.disabled = true;
      try {
        results.replaceChildren(...show(box.value, await ask({ text: box.value })));
      } catch (error) {
        results.replaceChildren();
        message.textContent = error.message;
      } finally {
        button.disabled = false;
      }
    }

    function show(text, { tokens, top, active }) {
      const shaded = make("div", { class: "shaded" });
      const title = make("h2", {});

      async function choose(latent) {
        const { values } = await ask({ text, latent });
        const most = Math.max(...values);
        title.replaceChildren("Latent ", make("a", { href: `#latent=${latent}` }, String(latent)));
        const shown = tokens.map(([id, piece], i) => ({ id, text: piece, value: values[i] }));
        shaded.replaceChildren(
          palinka.shaded(shown, { most, peak: values.indexOf(most), label: `The text, shaded by latent ${latent}` }),
        );
      }
      if (active.length) choose(active[0][0]);
      const pick = (latent) =>
        make("button", { type: "button", class: "pick", onclick: () => choose(latent) }, String(latent));
      return [
        title,
        shaded,
        make("h2", {}, `${palinka.plural(active.length, "latent")} active`),
        list(active, pick, tokens),
        make("h2", {}, "Strongest at each token"),
        perToken(tokens, top, pick),
      ];
    }
    return make(
      "article",
      { class: "text" },
      make("h1", {}, "Your own text"),
      make("p", { class: "lead" }, "The activations of every latent on text that you type. It stays on this computer."),
      form,
      message,
      results,
    );
  }

  function grid(label, headings, rows) {
    return make(
      "div",
      { class: "wide tall", tabindex: 0, role: "group", "aria-label": label },
      make(
        "table",
        { class: "plain" },
        make("thead", {}, make("tr", {}, headings.map((text) =>
          make("th", { scope: "col", class: WORDS.has(text) ? "words" : null }, text)))),
        rows,
      ),
    );
  }

  function list(active, pick, tokens) {
    const body = make("tbody");
    const labels = palinka.selection.labels;
    const row = ([latent, most, at, count]) =>
      make("tr", {},
        make("th", { scope: "row" }, pick(latent)),
        make("td", {}, palinka.number(most)),
        make("td", { class: "words" }, make("bdi", { class: "piece" }, tokens[at][1])),
        make("td", {}, palinka.count(count)),
        make("td", { class: "words" }, make("bdi", {}, labels?.[latent] ?? ""))); // prettier-ignore
    body.append(...active.slice(0, SHOWN).map(row));
    const whole = grid("Active latents", ["latent", "largest", "at", "tokens", "label"], body);
    if (active.length <= SHOWN) return whole;
    const more = make("button", { type: "button", onclick: () => {
      body.append(...active.slice(SHOWN).map(row));
      more.remove();
    } }, `Show all ${palinka.count(active.length)}`); // prettier-ignore
    return make("div", {}, whole, more);
  }

  function perToken(tokens, top, pick) {
    const rows = tokens.map(([id, piece], i) =>
      make("tr", {},
        make("th", { scope: "row", title: `id ${id}` }, make("bdi", { class: "piece" }, piece)),
        make("td", { class: "words" }, top[i].flatMap(([latent, value]) =>
          [pick(latent), make("small", {}, ` ${palinka.number(value)}  `)])))); // prettier-ignore
    return grid("Strongest latents of each token", ["token", "latents"], make("tbody", {}, rows));
  }

  palinka.textPage = async () => {
    if (isServed()) await palinka.selection.loadLabels();
    page ??= isServed() ? build() : unserved();
    return { title: "Your own text", element: page, shown: () => {} };
  };
})();
