"use strict";
// Tokens of the measured text that a word finds, and the latents that are most active at them.
(() => {
  const LEAST = 2; // letters of a token with which a longer word begins
  let tokens = null;

  async function all() {
    if (tokens) return tokens;
    const [{ places, counts }, { texts }] = await Promise.all([palinka.load("tokens"), palinka.vocabulary()]);
    const times = palinka.unpack(counts);
    tokens = Array.from(palinka.unpack(places), (place, at) => {
      const text = texts[place];
      return { text, plain: text.trim().toLowerCase(), count: times[at], at };
    });
    return tokens;
  }

  /** Adds to a token its `latents`, [{latent, mean, max}], largest mean first. */
  async function withLatents(token) {
    const { chunk } = await palinka.load("tokens");
    const number = Math.floor(token.at / chunk);
    const file = await palinka.load(`tokens-${String(number).padStart(4, "0")}`);
    const own = token.at - number * chunk;
    const start = file.sizes.slice(0, own).reduce((sum, size) => sum + size, 0);
    const [latents, means, maxima] = ["latents", "means", "maxima"].map((name) =>
      palinka.unpack(file[name]).subarray(start, start + file.sizes[own]),
    );
    return { ...token, latents: Array.from(latents, (latent, i) => ({ latent, mean: means[i], max: maxima[i] })) };
  }

  /**
   * The tokens that a word finds, at most `most`: those that are the word, apart from case and a
   * space before it, then those that begin with it, the most frequent first. Where there are none,
   * the longest token with which the word begins.
   */
  palinka.tokensOf = async (word, most) => {
    const wanted = word.trim().toLowerCase();
    const known = await all();
    const frequent = (found) => found.sort((a, b) => b.count - a.count);
    const same = frequent(known.filter(({ plain }) => plain === wanted));
    const longer = frequent(known.filter(({ plain }) => plain !== wanted && plain.startsWith(wanted)));
    let found = [...same, ...longer].slice(0, most);
    if (!found.length) {
      const begin = known.filter(({ plain }) => plain.length >= LEAST && wanted.startsWith(plain));
      const length = Math.max(0, ...begin.map(({ plain }) => plain.length));
      found = frequent(begin.filter(({ plain }) => plain.length === length)).slice(0, 1);
    }
    return Promise.all(found.map(withLatents));
  };
})();
