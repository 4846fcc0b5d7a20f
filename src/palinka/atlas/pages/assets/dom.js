"use strict";
// Elements. All text goes in as text: there is no way here to write markup.
(() => {
  const SVG = "http://www.w3.org/2000/svg";

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes ?? {})) {
      if (value === undefined || value === null || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name.startsWith("--")) element.style.setProperty(name, value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
    return element;
  }

  /** An element with attributes, listeners (onclick), CSS variables (--a) and children. */
  palinka.make = (tag, attributes, ...children) =>
    fill(document.createElement(tag), attributes, children);

  palinka.svg = (tag, attributes, ...children) =>
    fill(document.createElementNS(SVG, tag), attributes, children);

  palinka.byId = (id) => document.getElementById(id);

  /** Says something to those who listen instead of looking. */
  palinka.say = (text) => {
    palinka.byId("status").textContent = text;
  };

  /** Calls once per frame however often it is asked. */
  palinka.perFrame = (work) => {
    let asked = false;
    return () => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        work();
      });
    };
  };

  const tip = () => palinka.byId("tooltip");

  /** Shows a few words beside a rectangle of the window. */
  palinka.showTip = (box, ...content) => {
    const element = tip();
    element.replaceChildren(...content);
    element.hidden = false;
    const own = element.getBoundingClientRect();
    const left = Math.min(Math.max(4, box.left), innerWidth - own.width - 4);
    const above = box.top - own.height - 6;
    element.style.left = `${Math.max(4, left)}px`;
    element.style.top = `${above > 4 ? above : box.bottom + 6}px`;
  };

  palinka.hideTip = () => {
    tip().hidden = true;
  };
})();
