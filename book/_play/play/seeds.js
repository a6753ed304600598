"use strict";
/* How many seeds show a difference: the interval and the power of a t test, as lib/evidence/statistics.py has them. The
   spreads to choose from are those of the chapter's records, which its own cell writes into the page. */
(() => {
  const { node, exact } = Play;
  const POWER = 0.8, CONFIDENCE = 0.95;
  const CERTAIN = 30;   // standard errors: so large a difference is seen without fail
  const MOST = 10000;   // seeds that are looked through
  const PARTS = 1000;   // of an integral by Simpson's rule, an even number

  /** The distribution function of the normal distribution, by its series. */
  function normal(x) {
    if (Math.abs(x) > 8) return x > 0 ? 1 : 0;
    let term = x, sum = x;
    for (let odd = 3; Math.abs(term) > 1e-17; odd += 2) {
      term *= x * x / odd;
      sum += term;
    }
    return 0.5 + sum * Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI);
  }

  /** How likely Student's t lies within -x and x: a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4). */
  function within(x, freedom) {
    const angle = Math.atan(x / Math.sqrt(freedom));
    const even = freedom % 2 === 0;
    let term = even ? 1 : Math.cos(angle);
    let sum = freedom > 1 ? term : 0;
    for (let power = even ? 1 : 2; power <= freedom - 3; power += 2) {
      term *= power / (power + 1) * Math.cos(angle) ** 2;
      sum += term;
    }
    return even ? Math.sin(angle) * sum : 2 / Math.PI * (angle + Math.sin(angle) * sum);
  }

  /** Student's quantile, an interval's half-width in standard errors. By bisection; known ones are kept. */
  const edges = new Map();
  function edge(freedom) {
    if (!edges.has(freedom)) {
      let low = 0, high = 20;
      for (let step = 0; step < 60; step++) {
        const middle = (low + high) / 2;
        if (within(middle, freedom) < CONFIDENCE) low = middle;
        else high = middle;
      }
      edges.set(freedom, (low + high) / 2);
    }
    return edges.get(freedom);
  }

  /** The logarithm of the gamma function at half of a positive integer. */
  function logGammaOfHalf(integer) {
    let sum = integer % 2 ? Math.log(Math.PI) / 2 : 0;
    for (let below = integer - 2; below > 0; below -= 2) sum += Math.log(below / 2);
    return sum;
  }

  /** How likely a noncentral t exceeds the edge on either side: the normal distribution, shifted, averaged over what the
      measured standard deviation may be (in true ones), whose density is that of a chi. */
  function exceeds(freedom, shift) {
    const limit = edge(freedom);
    const scale = Math.log(2) + freedom / 2 * Math.log(freedom / 2) - logGammaOfHalf(freedom);
    const reach = 9 / Math.sqrt(2 * freedom);
    const from = Math.max(0, 1 - reach), width = (1 + reach - from) / PARTS;
    let sum = 0;
    for (let part = 0; part <= PARTS; part++) {
      const spread = from + part * width;
      const power = freedom === 1 ? 0 : (freedom - 1) * Math.log(spread);
      const density = Math.exp(scale + power - freedom * spread * spread / 2);
      const tails = normal(shift - limit * spread) + normal(-shift - limit * spread);
      sum += (part === 0 || part === PARTS ? 1 : part % 2 ? 4 : 2) * density * tails;
    }
    return sum * width / 3;
  }

  /** Degrees of freedom, and the variance of a mean difference of n runs in variances of one. */
  const design = (n, paired) => (paired ? [n - 1, 1 / n] : [2 * n - 2, 2 / n]);

  function halfWidth(n, spread, paired) {
    const [freedom, variance] = design(n, paired);
    return edge(freedom) * spread * Math.sqrt(variance);
  }

  function powerOf(n, effect, paired) {
    const [freedom, variance] = design(n, paired);
    const shift = effect / Math.sqrt(variance);
    return shift >= CERTAIN ? 1 : exceeds(freedom, shift);
  }

  /** The least n with the power of POWER; Infinity for more than MOST. By bisection, since the power grows with n. */
  function needed(spread, difference, paired) {
    const enough = (n) => powerOf(n, difference / spread, paired) >= POWER;
    if (!enough(MOST)) return Infinity;
    let few = 1, many = 2;
    while (!enough(many)) [few, many] = [many, Math.min(2 * many, MOST)];
    while (many - few > 1) {
      const middle = Math.floor((few + many) / 2);
      if (enough(middle)) many = middle;
      else few = middle;
    }
    return many;
  }

  const points = (value) => value.toFixed(2);
  const seedsInWords = (n) => (n === Infinity ? `more than ${MOST.toLocaleString("en")}` : n.toLocaleString("en"));

  // ---- the curve of the power by the number of seeds
  const LEFT = 55, RIGHT = 405, TOP = 12, BOTTOM = 190;
  const height = (power) => BOTTOM - power * (BOTTOM - TOP);

  /** The power for 2 to most seeds, with a mark at those that are chosen. */
  function curve(most, chosen, effect, paired) {
    const across = (n) => LEFT + (n - 2) / (most - 2) * (RIGHT - LEFT);
    const places = Array.from({ length: most - 1 }, (_, at) => at + 2)
      .map((n) => `${across(n)},${height(powerOf(n, effect, paired))}`);
    const ticks = [2, ...[1, 2, 3, 4].map((quarter) => Math.round(most * quarter / 4))];
    return [
      ...[0, 0.5, POWER, 1].flatMap((power) => [
        node("line", { class: power === POWER ? "wanted" : "grid", x1: LEFT, x2: RIGHT,
          y1: height(power), y2: height(power) }),
        node("text", { x: LEFT - 6, y: height(power), "text-anchor": "end", "dominant-baseline": "central" },
          `${100 * power} %`),
      ]),
      ...ticks.map((n) => node("text", { x: across(n), y: BOTTOM + 20, "text-anchor": "middle" }, n)),
      node("text", { x: (LEFT + RIGHT) / 2, y: BOTTOM + 40, "text-anchor": "middle" }, "seeds of each method"),
      node("polyline", { class: "power", points: places.join(" ") }),
      node("circle", { class: "chosen", cx: across(chosen), cy: height(powerOf(chosen, effect, paired)), r: 6 }),
    ];
  }

  Play.element("seeds.js", (box) => {
    const spreads = Play.written("recorded-spreads") ?? [];
    const most = 40;
    const asked = { spread: 1, difference: 1, seeds: 5, paired: true };

    const power = node("td"), width = node("td"), least = node("td"), verdict = node("output");
    const picture = node("svg", { viewBox: "0 0 420 240", class: "seeds", role: "img",
      "aria-label": "The power by the number of seeds; the dot is the number chosen" });

    function draw() {
      const { spread, difference, seeds, paired } = asked;
      const half = halfWidth(seeds, spread, paired);
      const seen = powerOf(seeds, difference / spread, paired);
      const few = needed(spread, difference, paired);
      width.replaceChildren("± ", exact(half, points(half)), " points");
      power.replaceChildren(exact(seen, `${(100 * seen).toFixed(1)} %`));
      least.replaceChildren(exact(few, seedsInWords(few)));
      picture.replaceChildren(...curve(most, seeds, difference / spread, paired));
      verdict.replaceChildren(...known());
    }

    /** What the number of seeds is worth where the spread itself is one of few runs. */
    function known() {
      const record = spreads[ready.value];
      if (!record) return [];
      const bound = (end) => {
        const n = needed(end, asked.difference, asked.paired);
        return exact(n, seedsInWords(n));
      };
      const { runs, spread, low, high } = record;
      return [`The spread of these ${runs} ${asked.paired ? "pairs" : "runs"}, ${points(spread)} points, is known only `,
        `between ${points(low)} and ${points(high)} (95 %). So between `, bound(low), " and ", bound(high),
        " seeds are needed."];
    }

    const set = (name) => (value) => {
      asked[name] = value;
      draw();
    };
    const ready = node("select", { change: choose }, node("option", { value: "" }, "a spread of your own"),
      ...spreads.map(({ label }, at) => node("option", { value: at }, label)));
    const range = { min: 0.001, max: 100 };
    const spreadWords = "its standard deviation over seeds (points)";
    const spreadField = Play.number(spreadWords, { ...range, value: asked.spread }, (value) => {
      ready.value = "";
      set("spread")(value);
    });
    const kinds = { paired: "paired by their seed", apart: "of seeds of their own" };
    const kind = Play.choice("runs", kinds, "paired", (value) => {
      ready.value = "";
      set("paired")(value === "paired");
    });

    /** Take over a spread of the records, and whether it is one of pairs. */
    function choose() {
      const record = spreads[ready.value];
      if (record) {
        Object.assign(asked, { spread: record.spread, paired: record.paired });
        const field = spreadField.querySelector("input");
        field.value = points(record.spread);
        field.setAttribute("aria-invalid", "false");
        spreadField.querySelector(".wrong").textContent = "";
        kind.querySelector(`[value=${record.paired ? "paired" : "apart"}]`).checked = true;
      }
      draw();
    }

    if (spreads.length) {
      box.append(node("label", { class: "select" }, node("span", {}, "the spread of"), ready));
      ready.value = "0";
    }
    box.append(
      spreadField, kind,
      Play.number("the difference to be seen (points)", { ...range, value: asked.difference }, set("difference")),
      Play.slider("seeds", { min: 2, max: most, step: 1, value: asked.seeds }, String, set("seeds")),
      node("table", {},
        node("tr", {}, node("th", { scope: "row" }, "95 % interval of the mean difference"), width),
        node("tr", {}, node("th", { scope: "row" }, "power: how often a t test sees that difference"), power),
        node("tr", {}, node("th", { scope: "row" }, "seeds needed to see it four times in five"), least)),
      picture, node("p", {}, verdict));
    choose();
  });
})();
