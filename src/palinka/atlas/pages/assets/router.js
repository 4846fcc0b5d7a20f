"use strict";
// From the address to the page: #latent=123, #analysis=0, #heads=0, #against, #text, and the overview.
(() => {
  const { make, byId } = palinka;
  let wanted = 0;

  function pageOf(hash) {
    const latent = /^#latent=(\d{1,9})$/.exec(hash);
    if (latent && Number(latent[1]) < palinka.overview.latents) {
      return palinka.latentPage(Number(latent[1]));
    }
    const analysis = /^#analysis=(\d{1,9})$/.exec(hash);
    if (analysis && Number(analysis[1]) < palinka.overview.analyses.length) {
      return palinka.analysisPage(Number(analysis[1]));
    }
    const heads = /^#heads=(\d{1,9})$/.exec(hash);
    if (heads && palinka.overview.analyses[Number(heads[1])]?.kind === "head_scores") {
      return palinka.headsPage(Number(heads[1]));
    }
    if (hash === "#against" && palinka.overview.against) return palinka.againstPage();
    if (hash === "#text") return palinka.textPage();
    if (hash === "" || hash === "#") return palinka.overviewPage();
    return missing(hash);
  }

  function missing(hash) {
    const last = palinka.overview.latents - 1;
    const element = make(
      "article",
      {},
      make("h1", {}, "Not there"),
      make("p", {}, `Nothing here is called ${hash.slice(0, 60)}. Latents are #latent=0 to #latent=${last}.`),
      make("p", {}, make("a", { href: "#" }, "To the overview")),
    );
    return { title: "Not there", element, shown: () => {} };
  }

  async function show() {
    if (location.hash === "#main") return; // the link that skips to the content
    const mine = ++wanted;
    let page;
    try {
      page = await pageOf(location.hash);
    } catch (error) {
      page = { title: "Not there", element: make("p", { role: "alert" }, error.message), shown: () => {} };
    }
    if (mine !== wanted) return; // another page was opened meanwhile
    palinka.hideTip();
    byId("main").replaceChildren(page.element);
    document.title = `${page.title} · feature atlas of ${palinka.overview.language_model}`;
    for (const link of byId("pages").querySelectorAll("a")) {
      const here = link.getAttribute("href") === (location.hash || "#");
      if (here) {
        link.setAttribute("aria-current", "page");
        link.scrollIntoView({ block: "nearest", inline: "nearest" });
      } else {
        link.removeAttribute("aria-current");
      }
    }
    page.shown();
    scrollTo(0, 0);
    if (mine > 1) palinka.say(page.title);
  }

  async function start() {
    palinka.overview = await palinka.load("overview");
    const { overview, selection } = palinka;
    byId("of").textContent = `${overview.language_model} · ${overview.site}`;
    byId("made").textContent = `Written by palinka ${overview.palinka}, ${overview.made.replace("T", " ").slice(0, 16)} UTC`;
    const link = (href, text) => make("li", {}, make("a", { href }, text));
    byId("pages").append(
      link("#", "Overview"),
      ...overview.analyses.map(({ name }, i) => link(`#analysis=${i}`, name)),
      ...overview.analyses.flatMap(({ name, kind }, i) =>
        kind === "head_scores" ? [link(`#heads=${i}`, name === "heads" ? "All heads" : `All ${name}`)] : [],
      ),
      ...(overview.against ? [link("#against", "Two dictionaries")] : []),
      link("#text", "Your text"),
    );
    selection.update();
    palinka.startSearch();
    palinka.startKeys();
    addEventListener("hashchange", show);
    await show();
  }

  start().catch((error) => {
    byId("main").textContent = error.message;
  });
})();
