"use strict";
/* Between which ends a loss of NT-Xent or SupCon lies: chance and floor of lib/losses.py, for the reader's own batch. */
(() => {
  const { node, exact } = Play;
  const FROM = 90, TO = 330;   // floor and chance on the line, in the picture's units
  const EDGES = [10, 410];     // the line's ends: as far as a mark goes

  /** The loss of m equal embeddings. */
  const chance = (m) => Math.log(m - 1);

  /** The loss that no m embeddings with so many positives each can beat. */
  function floor(m, positives, temperature) {
    const negatives = m - 1 - positives;
    return Math.log(positives + negatives * Math.exp(negatives ? -m / (negatives * temperature) : 0));
  }

  Play.element("bounds.js", (box) => {
    const asked = { images: 256, views: 2, temperature: 0.5, labelled: false, positives: 63, loss: 5 };

    const upper = node("td"), lower = node("td"), count = node("td"), others = node("td"), verdict = node("output");
    const mark = node("path", { class: "mark", d: "M0 -5L8 -20H-8Z" });
    const said = node("text", { class: "said", y: 28, "text-anchor": "middle" });
    const below = (x) => ({ x, y: 96, "text-anchor": "middle" });
    const ends = [[FROM, "floor", node("text", below(FROM))], [TO, "chance", node("text", below(TO))]];
    const line = node("svg", { viewBox: "0 0 420 100", class: "bounds", role: "img",
      "aria-label": "The loss on a line from floor to chance" },
      node("line", { class: "axis", x1: EDGES[0], x2: EDGES[1], y1: 55, y2: 55 }),
      node("line", { class: "way", x1: FROM, x2: TO, y1: 55, y2: 55 }),
      ...ends.flatMap(([x, name, number]) => [
        node("line", { class: "end", x1: x, x2: x, y1: 47, y2: 63 }),
        node("text", { x, y: 79, "text-anchor": "middle" }, name),
        number,
      ]),
      mark, said);

    function draw() {
      const { images, views, temperature, labelled, loss } = asked;
      const m = images * views;
      const positives = labelled ? asked.positives : views - 1;
      const possible = positives <= m - 1;
      const top = chance(m), bottom = possible ? floor(m, positives, temperature) : NaN;
      const share = (top - loss) / (top - bottom);

      count.replaceChildren(exact(m, m.toLocaleString("en")));
      others.replaceChildren(exact(positives, positives.toLocaleString("en")));
      upper.replaceChildren(exact(top, top.toFixed(4)));
      lower.replaceChildren(possible ? exact(bottom, bottom.toFixed(4)) : "none");
      ends[0][2].textContent = possible ? bottom.toFixed(2) : "";
      ends[1][2].textContent = top.toFixed(2);
      const shown = Number.isFinite(share);
      mark.toggleAttribute("hidden", !shown);
      said.textContent = shown ? loss : "";
      if (shown) {
        const x = Math.max(EDGES[0], Math.min(EDGES[1], TO - share * (TO - FROM)));
        mark.setAttribute("transform", `translate(${x} 55)`);
        said.setAttribute("x", Math.max(24, Math.min(396, x)));
      }
      verdict.replaceChildren(...judged({ m, positives, possible, top, bottom, loss, share }));
    }

    /** What there is to say of the loss, as parts of a sentence. */
    function judged({ m, possible, top, bottom, loss, share }) {
      if (!possible) return [`An anchor has ${(m - 1).toLocaleString("en")} others, and can't have more positives.`];
      if (bottom === top) return ["All others are positives: chance and floor are one, with no way between them."];
      if (loss > top) {
        return ["Above chance: more than a collapsed encoder pays. At a low temperature random directions do. Else ask ",
          "whether it is a mean over the anchors (trap 3)."];
      }
      if (loss < bottom) {
        return ["Below the floor, where no embeddings come: another loss, batch or temperature, or one with a factor ",
          "before it."];
      }
      const percent = exact(share, `${(100 * share).toFixed(1)} %`);
      return [`A loss of ${loss} has come `, percent, " of the way from chance to floor."];
    }

    const set = (name) => (value) => {
      asked[name] = value;
      draw();
    };
    const range = { min: 1, step: 1, value: asked.positives };
    const positives = Play.number("positives of each anchor", range, set("positives"));
    positives.hidden = true;
    const kind = Play.choice("positives", { views: "an image's other views (SimCLR)", labels: "its whole class (SupCon)" },
      "views", (value) => {
        positives.hidden = value === "views";
        set("labelled")(value === "labels");
      });
    box.append(
      node("div", {}, Play.number("images N", { min: 2, max: 1e6, step: 1, value: asked.images }, set("images")),
        Play.number("views of each", { min: 2, max: 100, step: 1, value: asked.views }, set("views"))),
      Play.temperature(asked.temperature, set("temperature")),
      kind, positives,
      node("table", {},
        node("tr", {}, node("th", { scope: "row" }, "embeddings M, all views of all images"), count),
        node("tr", {}, node("th", { scope: "row" }, "positives of each"), others),
        node("tr", {}, node("th", { scope: "row" }, "chance, what a collapsed encoder pays (nats)"), upper),
        node("tr", {}, node("th", { scope: "row" }, "floor, below which none comes (nats)"), lower)),
      Play.number("your loss (nats)", { min: -1e6, max: 1e6, value: asked.loss }, set("loss")),
      line, node("p", {}, verdict));
    draw();
  });
})();
