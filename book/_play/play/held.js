"use strict";
/* What was held equal between SupCon and cross-entropy, and who was ahead then: the chapter's records, which its own cell
   writes into the page. What was not run can't be chosen. */
(() => {
  const { node, exact } = Play;
  const BARS = ["thousands of views", "steps", "augmentations"];  // in the order of the records' numbers
  const WIDTH = 215, LEFT = 130;  // of the longest bar, and where bars begin

  const whole = (number) => Math.round(number).toLocaleString("en");
  const decimal = (points) => Play.minus(points.toFixed(1));
  const signed = (points) => (points > 0 ? "+" : "") + decimal(points);
  const inWords = ({ held }) => (held.length ? held.join(", ").replace(/, ([^,]*)$/, " and $1") : "nothing");
  const unique = (values) => [...new Set(values)];

  /** Bars for what each method gets. most: the largest numbers of either. */
  function bars(supcon, ce, most) {
    return BARS.flatMap((name, at) => {
      const top = at * 66;
      const arms = [["SupCon", "supcon", supcon], ["cross-entropy", "ce", ce]];
      const title = node("text", { class: "name", x: LEFT, y: top + 14 }, name);
      return [title, ...arms.flatMap(([method, look, numbers], place) => {
        const y = top + 20 + 20 * place;
        const long = WIDTH * numbers[at] / most[at];
        return [
          node("text", { x: LEFT - 6, y: y + 13, "text-anchor": "end" }, method),
          node("rect", { class: look, x: LEFT, y, width: long, height: 15, "data-value": numbers[at] }),
          node("text", { x: LEFT + long + 5, y: y + 13 }, whole(numbers[at])),
        ];
      })];
    });
  }

  /** The difference with its interval, on an axis that all records share. */
  function axis({ value, low: from, high: to }, [low, high]) {
    const across = (points) => 20 + 380 * (points - low) / (high - low);
    const look = value > 0 ? "supcon" : "ce";
    const interval = { class: `interval ${look}`, x1: across(from), x2: across(to), y1: 44, y2: 44 };
    return [
      node("line", { class: "axis", x1: 20, x2: 400, y1: 62, y2: 62 }),
      node("line", { class: "axis", x1: across(0), x2: across(0), y1: 22, y2: 68 }),
      ...[low, 0, high].map((points) => node("text", { x: across(points), y: 86, "text-anchor": "middle" },
        Play.minus(String(points)))),
      node("text", { x: across(low / 2), y: 86, "text-anchor": "middle" }, "points"),
      node("text", { x: across(0) - 8, y: 14, "text-anchor": "end" }, "cross-entropy leads"),
      node("text", { x: across(0) + 8, y: 14 }, "SupCon leads"),
      ...(from === null ? [] : [node("line", interval)]),
      node("circle", { class: `${from === null ? "single " : ""}${look}`, cx: across(value), cy: 44, r: 6 }),
      node("text", { class: "name", x: across(value), y: 34, "text-anchor": "middle" }, signed(value)),
    ];
  }

  Play.element("held.js", (box) => {
    const comparisons = Play.written("recorded-comparisons");
    if (!comparisons) {
      box.append(node("p", {}, "The records are not in this page: its chapter was not run."));
      return;
    }
    const runs = unique(comparisons.map((comparison) => comparison.runs));
    const ends = comparisons.flatMap(({ difference: { value, low, high } }) => [low ?? value, high ?? value, 0]);
    const span = [Math.floor(Math.min(...ends)) - 1, Math.ceil(Math.max(...ends)) + 1];
    let own, shown;  // the comparisons of the chosen runs, and which of them is seen

    const received = node("svg", { class: "held", viewBox: "0 0 420 200", role: "img" });
    const ahead = node("svg", { class: "held", viewBox: "0 0 420 100", role: "img",
      "aria-label": "The difference on a line" });
    const verdict = node("output");
    const asPublished = node("p", {}, "With nothing held equal each has the epochs as published, in proportion.");
    const chooser = node("select", { change: choose }, ...runs.map((name) => node("option", { value: name }, name)));
    const held = node("div");

    /** Take the chosen runs, with the same things held equal where they have that. */
    function choose() {
      own = Object.fromEntries(comparisons.filter((comparison) => comparison.runs === chooser.value)
        .map((comparison) => [inWords(comparison), comparison]));
      shown = own[shown && inWords(shown)] ?? Object.values(own)[0];
      const words = unique(comparisons.map(inWords));
      const said = Object.fromEntries(words.map((equal) => [equal, equal + (own[equal] ? "" : " (not run)")]));
      const choice = Play.choice("held equal", said, inWords(shown), (equal) => {
        shown = own[equal];
        draw();
      });
      choice.querySelectorAll("input").forEach((input) => { input.disabled = !own[input.value]; });
      held.replaceChildren(choice);
      draw();
    }

    function draw() {
      const all = Object.values(own);
      const most = BARS.map((_, at) => Math.max(...all.flatMap(({ supcon, ce }) => [supcon[at], ce[at]])));
      const said = BARS.map((name, at) =>
        `${name}: SupCon ${whole(shown.supcon[at])}, cross-entropy ${whole(shown.ce[at])}`);
      received.setAttribute("aria-label", said.join("; "));
      received.replaceChildren(...bars(shown.supcon, shown.ce, most));
      ahead.replaceChildren(...axis(shown.difference, span));
      verdict.replaceChildren(...judged());
      asPublished.hidden = shown.held.length > 0;
    }

    /** Who is ahead. */
    function judged() {
      const { difference: { value, low, high }, pairs } = shown;
      const interval = low === null ? "" : `\u00a0[${decimal(low)},\u00a0${decimal(high)}]`;
      const first = value > 0 ? "SupCon" : "cross-entropy";
      const sure = low > 0 || high < 0 ? `${first} leads` : "neither is shown to lead";
      const leads = low === null ? `${first} is ahead in the only pair` : sure;
      const many = low === null ? "; one pair has no interval" : `, ${pairs} pairs`;
      return [`With ${inWords(shown)} held equal ${leads}: SupCon minus cross-entropy is `,
        exact(value, signed(value)), ` points${interval}${many}.`];
    }

    box.append(
      node("label", { class: "select" }, node("span", {}, "runs"), chooser),
      held, received, ahead, node("p", {}, verdict), asPublished,
      node("p", {}, "Points are of test accuracy by a linear probe on ", node("i", {}, "h"),
        ", runs of the same seed paired, with 95 % intervals."));
    choose();
  });
})();
