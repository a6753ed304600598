"use strict";
/* What was held equal between SupCon and cross-entropy, and who was ahead then: the chapter's records, which its own cell
   writes into the page. What was not run is said to be so. */
(() => {
  const { node, exact } = Play;
  const THINGS = { views: "views", augmentation: "augmentation", steps: "steps" };
  const BARS = ["thousands of views", "steps", "augmentations"];  // in the order of the records' numbers
  const WIDTH = 215, LEFT = 130;  // of the longest bar, and where bars begin

  const whole = (number) => Math.round(number).toLocaleString("en");
  const signed = (points) => `${points > 0 ? "+" : ""}${points.toFixed(1)}`;
  const isOf = (held) => (comparison) =>
    Object.keys(THINGS).every((thing) => comparison.held.includes(thing) === held.has(thing));

  /** What is held equal, in words. */
  function inWords(held) {
    const names = Object.keys(THINGS).filter((thing) => held.includes(thing));
    return names.length ? names.join(", ").replace(/, ([^,]*)$/, " and $1") : "nothing";
  }

  /** Bars for what each method gets: numbers of SupCon, and of cross-entropy where that was run. most: of either. */
  function bars(supcon, ce, most) {
    return BARS.flatMap((name, at) => {
      const top = at * 66;
      const arms = [["SupCon", "supcon", supcon], ["cross-entropy", "ce", ce]];
      const title = node("text", { class: "name", x: LEFT, y: top + 14 }, name);
      return [title, ...arms.flatMap(([method, look, numbers], place) => {
        const y = top + 20 + 20 * place;
        const said = numbers ? whole(numbers[at]) : "not run";
        const long = numbers ? WIDTH * numbers[at] / most[at] : 0;
        return [
          node("text", { x: LEFT - 6, y: y + 13, "text-anchor": "end" }, method),
          node("rect", { class: look, x: LEFT, y, width: long, height: 15, "data-value": numbers ? numbers[at] : "" }),
          node("text", { x: LEFT + long + 5, y: y + 13 }, said),
        ];
      })];
    });
  }

  /** The difference with its interval, on an axis that all records share. */
  function axis(comparison, [low, high]) {
    const across = (points) => 20 + 380 * (points - low) / (high - low);
    const drawn = [
      node("line", { class: "axis", x1: 20, x2: 400, y1: 62, y2: 62 }),
      node("line", { class: "axis", x1: across(0), x2: across(0), y1: 22, y2: 68 }),
      ...[low, 0, high].map((points) => node("text", { x: across(points), y: 86, "text-anchor": "middle" }, points)),
      node("text", { x: across(low / 2), y: 86, "text-anchor": "middle" }, "points"),
      node("text", { x: across(0) - 8, y: 14, "text-anchor": "end" }, "cross-entropy leads"),
      node("text", { x: across(0) + 8, y: 14 }, "SupCon leads"),
    ];
    if (comparison) {
      const { value, low: from, high: to } = comparison.difference;
      const look = value > 0 ? "supcon" : "ce";
      if (from !== null) {
        drawn.push(node("line", { class: `interval ${look}`, x1: across(from), x2: across(to), y1: 44, y2: 44 }));
      }
      drawn.push(node("circle", { class: `${from === null ? "single " : ""}${look}`, cx: across(value), cy: 44, r: 6 }),
        node("text", { class: "name", x: across(value), y: 34, "text-anchor": "middle" }, signed(value)));
    }
    return drawn;
  }

  Play.element("held.js", (box) => {
    const comparisons = Play.written("recorded-comparisons");
    if (!comparisons) {
      box.append(node("p", {}, "The records are not in this page: its chapter was not run."));
      return;
    }
    const runs = [...new Set(comparisons.map((comparison) => comparison.runs))];
    const ends = comparisons.flatMap(({ difference: { value, low, high } }) => [low ?? value, high ?? value, 0]);
    const span = [Math.floor(Math.min(...ends)) - 1, Math.ceil(Math.max(...ends)) + 1];
    const held = new Set();

    const received = node("svg", { class: "held", viewBox: "0 0 420 200", role: "img" });
    const ahead = node("svg", { class: "held", viewBox: "0 0 420 100", role: "img",
      "aria-label": "The difference on a line" });
    const verdict = node("output");
    const chooser = node("select", { change: draw }, ...runs.map((name) => node("option", { value: name }, name)));

    function draw() {
      const own = comparisons.filter((comparison) => comparison.runs === chooser.value);
      const [found] = own.filter(isOf(held));
      const most = BARS.map((_, at) => Math.max(...own.flatMap(({ supcon, ce }) => [supcon[at], ce[at]])));
      const said = BARS.map((name, at) => {
        const other = found ? whole(found.ce[at]) : "not run";
        return `${name}: SupCon ${whole(own[0].supcon[at])}, cross-entropy ${other}`;
      });
      received.setAttribute("aria-label", said.join("; "));
      received.replaceChildren(...bars(own[0].supcon, found?.ce, most));
      ahead.replaceChildren(...axis(found, span));
      verdict.replaceChildren(...judged(found, own));
    }

    /** Who is ahead, or which comparisons of these runs there are. */
    function judged(found, own) {
      const equal = `With ${inWords([...held])} held equal `;
      if (!found) {
        const others = own.map((comparison) => inWords(comparison.held)).join("; ");
        return [equal, `there is no record: such runs were not made. There are records with these held equal: ${others}.`];
      }
      const { value, low, high } = found.difference;
      const interval = low === null ? "" : `\u00a0[${low.toFixed(1)},\u00a0${high.toFixed(1)}]`;
      const first = value > 0 ? "SupCon" : "cross-entropy";
      const shown = low > 0 || high < 0 ? `${first} leads` : "neither is shown to lead";
      const leads = low === null ? `${first} is ahead in the only pair` : shown;
      const pairs = low === null ? "; one pair has no interval" : `, ${found.pairs} pairs`;
      return [equal, leads, ": SupCon minus cross-entropy is ", exact(value, signed(value)), ` points${interval}${pairs}.`];
    }

    const tick = (thing) => Play.tick(THINGS[thing], false, (checked) => {
      if (checked) held.add(thing);
      else held.delete(thing);
      draw();
    });
    box.append(
      node("label", { class: "select" }, node("span", {}, "runs"), chooser),
      node("fieldset", { class: "choice" }, node("legend", {}, "held equal"), ...Object.keys(THINGS).map(tick)),
      received, ahead, node("p", {}, verdict),
      node("p", {}, "With nothing held equal each has the epochs as published, in proportion. Points are of test accuracy by ",
        "a linear probe on ", node("i", {}, "h"), ", runs of the same seed paired, with 95 % intervals."));
    draw();
  });
})();
