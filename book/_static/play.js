"use strict";
/* What a reader can touch. A figure stays as it is, for paper and for pages without scripts; below it stands a button, and
   behind the button an element that answers. Its script is fetched when it is asked for, so no page waits for one. All are
   plain scripts: a page opened from a file may load these, but neither modules nor data. */
const Play = (() => {
  const OWN_PICTURE = ["photographs.js", "augment.js", "encoder-weights.js", "encoder.js", "own-picture.js"];
  // By the id of what an element stands below, a figure or a heading's section: what its button says, and its scripts.
  const ELEMENTS = {
    "loss-circle": { invitation: "Drag the points yourself", scripts: ["circle.js"] },
    "views-gallery": { invitation: "Show a picture of yours to a trained encoder", scripts: OWN_PICTURE },
    "own-folder": { invitation: "Show a picture of yours to a trained encoder", scripts: OWN_PICTURE },
    "views-recipes": { invitation: "Make your own views", scripts: ["photographs.js", "augment.js", "views.js"] },
    "simclr-matrices": { invitation: "Watch the training step by step", scripts: ["film.js"] },
    "evaluation-neighbours": { invitation: "Explore the neighbours of other images", scripts: ["neighbours.js"] },
    "positives-plane": { invitation: "Drag the points, switch the labels", scripts: ["circle.js"] },
    "loss-simplex": { invitation: "Chance and floor of your batch", scripts: ["bounds.js"] },
    "supcon-differences": { invitation: "Choose what is held equal", scripts: ["held.js"] },
    "could-so-few-runs-show-one-point": { invitation: "How many seeds do you need?", scripts: ["seeds.js"] },
  };
  const FOLDER = new URL("../play/", document.currentScript.src).href;
  const SVG = new Set(["svg", "g", "path", "line", "circle", "rect", "text", "polyline"]);
  // Round values, as good as evenly spaced on a logarithmic scale.
  const TEMPERATURES = [
    0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1, 1.2, 1.5, 2, 2.5, 3, 4, 5,
  ];
  const starters = {};  // by the last of an element's scripts
  const loading = {};   // promises, by script
  const data = {};      // what scripts of data bring, by a name of theirs

  /** An HTML or SVG element. attributes: by name; those that are functions listen to the event of that name. */
  function node(tag, attributes = {}, ...children) {
    const made = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") made.addEventListener(name, value);
      else if (value === true) made.setAttribute(name, "");
      else if (value !== false && value != null) made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  /** A slider with its words and its value. shown: the value in words; changed: called with each new value. */
  function slider(words, { min, max, step, value }, shown, changed) {
    const output = node("output", {}, shown(value));
    const input = node("input", { type: "range", min, max, step, value, input() {
      output.value = shown(input.valueAsNumber);
      input.setAttribute("aria-valuetext", output.value);
      changed(input.valueAsNumber);
    } });
    input.setAttribute("aria-valuetext", shown(value));
    return node("label", { class: "slider" }, node("span", {}, words), input, output);
  }

  /** A slider over TEMPERATURES. changed: called with the temperature. */
  function temperature(value, changed) {
    const scale = { min: 0, max: TEMPERATURES.length - 1, step: 1, value: TEMPERATURES.indexOf(value) };
    return slider("temperature τ", scale, (at) => String(TEMPERATURES[at]), (at) => changed(TEMPERATURES[at]));
  }

  /** A field for a number, with its words. changed: called with each number within its range; what is not, is said, and
      results are hidden as long. */
  function number(words, { min, max, step = "any", value }, changed) {
    const range = [min == null ? "" : ` from ${min}`, max == null ? "" : ` to ${max.toLocaleString("en")}`].join("");
    const wrong = node("span", { class: "wrong", role: "alert" });
    const input = node("input", { type: "number", inputmode: "decimal", min, max, step, value, input() {
      const valid = input.validity.valid && input.value !== "";
      input.setAttribute("aria-invalid", String(!valid));
      wrong.textContent = valid ? "" : `${step === 1 ? "a whole number" : "a number"}${range}`;
      if (valid) changed(input.valueAsNumber);
    } });
    return node("label", { class: "number" }, node("span", {}, words), input, wrong);
  }

  /** A number's text, its hyphen made a minus sign. */
  const minus = (text) => text.replace("-", "\u2212");

  /** A number as a reader wants it, with all its digits in the page. */
  function exact(value, shown) {
    return node("data", { value }, shown);
  }

  /** What the page's own cell wrote as JSON under that id; null on a page without it. */
  function written(id) {
    const script = document.getElementById(id);
    return script && JSON.parse(script.textContent);
  }

  /** A box to tick, with its words. changed: called with true or false. */
  function tick(words, checked, changed) {
    const input = node("input", { type: "checkbox", checked, change: () => changed(input.checked) });
    return node("label", { class: "tick" }, input, node("span", {}, words));
  }

  /** Choices of which one holds, by value: its words. changed: called with the value. */
  function choice(words, choices, chosen, changed) {
    const name = `play-${Math.random().toString(36).slice(2)}`;
    const group = node("fieldset", { class: "choice" }, node("legend", {}, words));
    for (const [value, said] of Object.entries(choices)) {
      const input = node("input", { type: "radio", name, value, checked: value === chosen, change: () => changed(value) });
      group.append(node("label", {}, input, node("span", {}, said)));
    }
    return group;
  }

  /** A button. */
  function button(words, pressed, attributes = {}) {
    return node("button", { type: "button", class: "play-button", click: pressed, ...attributes }, words);
  }

  /** Fetch a script of the folder beside this one, once. A promise that it has run. */
  function load(script) {
    loading[script] ??= new Promise((done, failed) => {
      document.head.append(node("script", { src: FOLDER + script, load: done, error: () => {
        delete loading[script];
        failed(new Error(`${script} could not be loaded`));
      } }));
    });
    return loading[script];
  }

  /** Say what fills an element's box once it is opened: start(box, id of its place). Called by the last of its scripts. */
  function element(script, start) {
    starters[script] = start;
  }

  /** Put the button of an element below what it belongs to. */
  function invite(id, { invitation, scripts }) {
    const place = document.getElementById(id);
    if (!place) return;
    const box = node("div", { class: "play-box" });
    const opener = button(invitation, open, { "aria-expanded": "false" });
    const section = node("section", { class: "play", "aria-label": invitation, "data-play": id }, opener);
    let opened = false;

    async function open() {
      if (!opened) {
        opened = true;
        section.append(box);
        try {
          for (const script of scripts) await load(script);
          box.replaceChildren();
          starters[scripts.at(-1)](box, id);
        } catch (error) {
          opened = false;
          box.replaceChildren(node("p", { role: "alert" }, `This can't be shown: ${error.message}.`));
        }
      } else box.hidden = !box.hidden;
      opener.setAttribute("aria-expanded", String(!box.hidden));
    }

    if (place.tagName === "SECTION") place.querySelector("h1, h2, h3, h4").after(section);
    else place.after(section);
  }

  document.addEventListener("DOMContentLoaded", () => {
    for (const [id, about] of Object.entries(ELEMENTS)) invite(id, about);
  });
  return { node, slider, temperature, number, exact, minus, written, tick, choice, button, load, element, data };
})();
