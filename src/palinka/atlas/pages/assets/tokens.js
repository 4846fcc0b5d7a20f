"use strict";
// Texts whose tokens are shaded by an activation. Whatever a token holds, it is only text.
(() => {
  const ENDS_LINE = "↵";
  const SPACE_BEFORE = /^ (?=.)/;

  /**
   * A text.
   *
   * @param tokens [{text, id, value}], of which `peak` is one's place, or -1.
   * @param most The activation that is shaded most.
   * @param label What the text is, for those who do not see it.
   */
  palinka.shaded = (tokens, { most, peak = -1, label }) => {
    const { make } = palinka;
    const spans = tokens.map(({ text, value }, place) => {
      const part = most > 0 ? Math.min(1, Math.max(0, value / most)) : 0;
      return make(
        "span",
        {
          class: `token${place === peak ? " peak" : ""}${part > 0 ? " on" : ""}`,
          "data-place": place,
          // A weak activation is still to be seen.
          "--a": part > 0 ? (0.12 + 0.88 * part).toFixed(3) : null,
        },
        text.replace(SPACE_BEFORE, ""),
      );
    });
    // A space before a word is not shaded: where the line breaks, it would stay behind.
    const children = spans.flatMap((span, place) => [
      place > 0 && SPACE_BEFORE.test(tokens[place].text) ? " " : null,
      span,
      tokens[place].text.endsWith(ENDS_LINE) ? make("wbr") : null,
    ]);
    const line = make("p", { class: "tokens", tabindex: 0, role: "group", dir: "ltr",
      "aria-label": label }, children); // prettier-ignore
    let current = -1;

    function tell(place, aloud) {
      const { text, id, value } = tokens[place];
      const about = `${palinka.exactly(value)} · id ${id}`;
      palinka.showTip(spans[place].getBoundingClientRect(), make("bdi", {}, text), make("small", {}, about));
      if (aloud) palinka.say(`${text}: ${about}`);
    }

    line.addEventListener("pointerover", (event) => {
      const span = event.target.closest(".token");
      if (span) tell(Number(span.dataset.place), false);
    });
    line.addEventListener("pointerleave", palinka.hideTip);
    line.addEventListener("blur", () => {
      spans[current]?.classList.remove("current");
      current = -1;
      palinka.hideTip();
    });
    line.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      spans[current]?.classList.remove("current");
      const start = current < 0 ? Math.max(0, peak) - step : current;
      current = Math.min(Math.max(0, start + step), spans.length - 1);
      spans[current].classList.add("current");
      tell(current, true);
    });
    return line;
  };

  /** The windows of a record as lists of tokens, each with its column. */
  palinka.windows = (windows, vocabulary) => {
    const places = palinka.unpack(windows.tokens);
    const none = 2 ** (8 * places.BYTES_PER_ELEMENT) - 1;
    const count = windows.columns.length;
    const size = count ? places.length / count : 0;
    return windows.columns.map((column, index) => {
      const values = new Map();
      const flat = windows.activations[index];
      for (let i = 0; i < flat.length; i += 2) values.set(flat[i], flat[i + 1]);
      const tokens = [];
      let peak = -1;
      for (let at = 0; at < size; at++) {
        const place = places[index * size + at];
        if (place === none) continue;
        if (at === palinka.overview.before) peak = tokens.length;
        tokens.push({
          text: windows.shown[index][at] ?? vocabulary.texts[place],
          id: vocabulary.ids[place],
          value: values.get(at) ?? 0,
        });
      }
      const { [index]: document } = windows.document;
      return { column, tokens, peak, document, position: windows.position[index] };
    });
  };
})();
