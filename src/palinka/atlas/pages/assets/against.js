"use strict";
// Two dictionaries side by side: latents matched by the cosine of their directions.
(() => {
  const { make } = palinka;
  const SHOWN = 100; // rows at first, and with each further step

  /** The matched latents, most similar first. */
  palinka.matches = ({ pairs, cosines }) => {
    const both = palinka.unpack(pairs);
    return {
      here: both.filter((_, i) => i % 2 === 0),
      there: both.filter((_, i) => i % 2 === 1),
      cosine: palinka.unpack(cosines),
    };
  };

  const own = (latent) => make("a", { href: `#latent=${latent}` }, String(latent));
  const text = (label, ...before) => make("td", { class: "words" }, before, make("bdi", {}, label || "never active"));
  const number = (value) => make("td", { title: palinka.exactly(value) }, palinka.number(value));

  /** A table of as many rows as are asked for; `row` makes one from its place. */
  function table(label, headings, count, row) {
    const body = make("tbody");
    const more = make("button", { type: "button", onclick: extend }, `Show ${SHOWN} more`);
    function extend() {
      const from = body.children.length;
      for (let i = from; i < Math.min(count, from + SHOWN); i++) body.append(row(i));
      more.hidden = body.children.length >= count;
    }
    extend();
    const head = headings.map((text) =>
      make("th", { scope: "col", class: /tokens/.test(text) ? "words" : null }, text),
    );
    return [
      make("div", { class: "wide", tabindex: 0, role: "group", "aria-label": label },
        make("table", { class: "plain" }, make("thead", {}, make("tr", {}, head)), body)), // prettier-ignore
      more,
    ];
  }

  function pairs({ here, there, cosine }, found, labels) {
    const box = make("div");
    const draw = (weakest) => {
      const at = (i) => (weakest ? here.length - 1 - i : i);
      const row = (i) => {
        const [ours, theirs] = [here[at(i)], there[at(i)]];
        return make("tr", {}, number(cosine[at(i)]), text(labels[ours], own(ours), " "),
          text(found.tokens[theirs], make("b", {}, String(theirs)), " ")); // prettier-ignore
      };
      const headings = ["cosine", "here: latent, tokens", "there: latent, tokens"];
      box.replaceChildren(...table("Matched latents", headings, here.length, row));
    };
    draw(false);
    const order = make("select", { onchange: (event) => draw(event.target.value === "weakest") },
      make("option", { value: "strongest" }, "largest cosine first"),
      make("option", { value: "weakest" }, "smallest cosine first")); // prettier-ignore
    return make("section", {}, make("h2", {}, "Matched latents"), make("p", {}, make("label", {}, "Order ", order)), box);
  }

  /** Latents that are like none of the other dictionary, the most active first. */
  function alone(title, best, density, labels, floor, link) {
    const all = Array.from(best.keys()).filter((latent) => best[latent] < floor);
    const active = all.filter((latent) => density[latent] > 0).sort((a, b) => density[b] - density[a]);
    const row = (i) =>
      make("tr", {}, make("td", {}, link(active[i])), text(labels[active[i]]), number(density[active[i]]), number(best[active[i]]));
    return make(
      "section",
      {},
      make("h2", {}, title),
      make("p", {}, `${palinka.count(all.length)} of ${palinka.plural(best.length, "latent")}; ${palinka.count(all.length - active.length)} of them are never active and not listed. The most active come first.`),
      active.length ? table(title, ["latent", "tokens", "density (%)", "largest cosine"], active.length, row) : null,
    );
  }

  function summary(cosine, best, floor) {
    const sorted = Float32Array.from(cosine).sort();
    const share = (test, all) => palinka.number((100 * all.filter(test).length) / all.length);
    const rows = [
      ["median cosine of matched latents", palinka.number(sorted[Math.floor(sorted.length / 2)])],
      ["matched with a cosine of 0.9 or more", `${share((c) => c >= 0.9, cosine)} %`],
      [`only here (largest cosine below ${palinka.number(floor)})`, `${share((c) => c < floor, best[0])} %`],
      [`only there (largest cosine below ${palinka.number(floor)})`, `${share((c) => c < floor, best[1])} %`],
    ];
    return make("dl", { class: "metrics" }, rows.map(([name, value]) =>
      make("div", {}, make("dt", {}, name), make("dd", {}, value)))); // prettier-ignore
  }

  palinka.againstPage = async () => {
    const [found] = await Promise.all([palinka.load("against"), palinka.selection.loadLabels()]);
    const { labels } = palinka.selection;
    const matches = palinka.matches(found);
    const best = found.best.map(palinka.unpack);
    const density = [palinka.selection.values("density"), palinka.unpack(found.density)];
    const way = `matched one-to-one, so that the sum of the cosines is as large as possible; a latent without one of at least ${palinka.number(found.least)} has no match`;
    const element = make(
      "article",
      { class: "against" },
      make("h1", {}, "Two dictionaries"),
      make("p", { class: "lead" },
        `${palinka.count(best[0].length)} latents here and ${palinka.count(best[1].length)} in `, make("bdi", {}, found.name),
        `, called “here” and “there”: ${way}. Cosines are between decoder directions.`), // prettier-ignore
      make("p", { class: "note" },
        `By chance 1 % of the latents have a match with a cosine of at least ${palinka.number(found.floor)}; here ${palinka.number(found.share)} % have. Chance: one of the dictionaries with random signs of its coordinates, in the eigenbasis of the activations. A latent is in one dictionary only if its largest cosine with any latent of the other is below that.`), // prettier-ignore
      make("h2", {}, "Agreement"),
      make("div", { class: "comparison" }, palinka.cosineHistogram(matches.cosine), summary(matches.cosine, best, found.floor)),
      pairs(matches, found, labels),
      alone("Only here", best[0], density[0], labels, found.floor, own),
      alone("Only there", best[1], density[1], found.tokens, found.floor, String),
    );
    return { title: "Two dictionaries", element, shown: () => {} };
  };
})();
