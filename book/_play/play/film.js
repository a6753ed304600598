"use strict";
/* A training step by step, as the chapter's own run was watched: the cosines of unseen digits after each step, their means,
   and the loss. All numbers are the chapter's. */
Play.element("film.js", box => {
  const { node } = Play;
  /* losses: of each step; chance, floor: what they lie between; classes: of the digits; cosines: in hundredths, after no
     step, one, ..., row by row, of first views with second views; partners, others, alike: their means over two views of a
     digit, over different digits, and over different digits of a class; colours: from -1 to 1; views: a sheet, the first
     views in one row and the second ones in another. */
  const film = Play.written("recorded-film");
  const { losses, chance, floor, classes } = film;
  const last = losses.length, count = classes.length;
  const CELL = 32, GAP = 6;  // pixels of the matrix: a cell's, as large as a picture, and between classes
  const PACE = 120;          // milliseconds a step
  const WIDE = 320, HIGH = 130, LEFT = 34, RIGHT = 8, TOP = 8, BOTTOM = 20;  // a curve's axes
  let step = 0, timer = null;

  // --- the matrix -----------------------------------------------------------------------------------------------------

  // Where the cells of a row or a column begin: behind the pictures, and a gap before each class.
  const starts = classes.map((_, n) =>
    (n + 1) * CELL + GAP * classes.slice(0, n + 1).filter((name, k) => name !== classes[k - 1]).length);
  const side = starts[count - 1] + CELL;
  const matrix = node("canvas", { role: "img", width: side, height: side });
  const context = matrix.getContext("2d");
  const channels = film.colours.map(colour => [1, 3, 5].map(at => parseInt(colour.slice(at, at + 2), 16)));

  /** The colour of a cosine, between the two nearest of film.colours. */
  function colour(cosine) {
    const place = (cosine + 1) / 2 * (channels.length - 1), below = Math.min(Math.floor(place), channels.length - 2);
    const mixed = channels[below].map((start, c) => Math.round(start + (place - below) * (channels[below + 1][c] - start)));
    return `rgb(${mixed.join()})`;
  }

  function drawMatrix() {
    film.cosines[step].forEach((hundredths, n) => {
      context.fillStyle = colour(hundredths / 100);
      context.fillRect(starts[n % count], starts[Math.floor(n / count)], CELL, CELL);
    });
    matrix.setAttribute("aria-label", `Cosines of ${count} first views, the rows, with ${count} second views, the columns. `
      + said());
  }

  const sheet = new Image();
  sheet.addEventListener("load", () => starts.forEach((start, n) => {
    context.drawImage(sheet, CELL * n, 0, CELL, CELL, 0, start, CELL, CELL);
    context.drawImage(sheet, CELL * n, CELL, CELL, CELL, start, 0, CELL, CELL);
  }));
  sheet.src = film.views;

  const bar = node("div", { class: "bar", style: `background: linear-gradient(to right, ${film.colours.join()})` });
  const scale = node("div", { class: "scale", "aria-hidden": "true" },
    node("span", {}, "−1"), bar, node("span", {}, "1"), node("span", {}, "cosine of z"));

  // --- the curves -----------------------------------------------------------------------------------------------------

  /** A figure of curves over the steps, with a line at the present one.
      curves: each with its values, the step of the first, its look, and words; levels: dotted lines with words. */
  function chart(title, [low, high], ticks, curves, levels) {
    const x = at => LEFT + at / last * (WIDE - LEFT - RIGHT);
    const y = value => TOP + (high - value) / (high - low) * (HIGH - TOP - BOTTOM);
    const text = (words, place, anchor = "start") => node("text", { ...place, "text-anchor": anchor }, words);
    const svg = node("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": title });
    const axis = { stroke: "currentColor", "stroke-opacity": 0.4 };
    const cursor = node("line", { y1: TOP, y2: y(low), stroke: "currentColor", "stroke-width": 1.5 });
    svg.append(cursor, node("line", { x1: x(0), x2: x(last), y1: y(low), y2: y(low), ...axis }));
    for (const value of ticks) {
      svg.append(text(Play.minus(String(value)), { x: LEFT - 5, y: y(value) + 4 }, "end"));
    }
    for (const at of [0, last / 2, last]) svg.append(text(String(at), { x: x(at), y: HIGH - 4 }, at === last ? "end" : "middle"));
    for (const { value, words } of levels) {
      svg.append(
        node("line", { x1: x(0), x2: x(last), y1: y(value), y2: y(value), stroke: "currentColor", "stroke-dasharray": "2 3" }),
        text(words, { x: x(last), y: y(value) + (value === low ? -4 : 13) }, "end"),
      );
    }
    const legend = node("div", { class: "legend" });
    const dots = curves.map(({ values, first, look, words }) => {
      const points = values.map((value, n) => `${x(first + n)},${y(value)}`).join(" ");
      svg.append(node("polyline", { points, fill: "none", "stroke-width": 2, ...look }));
      const line = node("svg", { viewBox: "0 0 24 8" }, node("line", { x2: 24, y1: 4, y2: 4, "stroke-width": 2, ...look }));
      if (words) legend.append(node("span", {}, line, words));
      return node("circle", { r: 4, fill: look.stroke });
    });
    svg.append(...dots);
    const move = () => {
      cursor.setAttribute("x1", x(step));
      cursor.setAttribute("x2", x(step));
      curves.forEach(({ values, first }, n) => {
        dots[n].setAttribute("visibility", step < first ? "hidden" : "visible");
        dots[n].setAttribute("cx", x(step));
        dots[n].setAttribute("cy", y(values[Math.max(step, first) - first]));
      });
    };
    return { figure: node("div", {}, node("div", { class: "title" }, title), svg, legend), move };
  }

  const lowest = Math.min(0, ...film.others, ...film.alike);
  const charts = [
    chart("Loss (nats) in each step", [floor, chance], [], [
      { values: losses, first: 1, look: { stroke: "var(--pst-color-primary)" } },
    ], [
      { value: chance, words: `chance ${chance.toFixed(2)}` },
      { value: floor, words: `floor ${floor.toFixed(2)}` },
    ]),
    chart("Mean cosine of z after each step", [Math.floor(10 * lowest) / 10, 1], [0, 0.5, 1], [
      { values: film.partners, first: 0, look: { stroke: "var(--pst-color-primary)" }, words: "two views of a digit" },
      { values: film.alike, first: 0, look: { stroke: "currentColor", "stroke-dasharray": "5 3" },
        words: "two digits of a class" },
      { values: film.others, first: 0, look: { stroke: "currentColor" }, words: "different digits" },
    ], []),
  ];

  // --- what is touched ------------------------------------------------------------------------------------------------

  const number = (value, digits = 2) => Play.minus(value.toFixed(digits));

  /** What there is to see at the present step. */
  function said() {
    const start = step ? `After step ${step} of ${last}, with a loss of ${number(losses[step - 1])} nats` : "Before the training";
    return `${start}: mean cosine ${number(film.partners[step])} of two views of a digit (positives), `
      + `${number(film.others[step])} of different digits (negatives), ${number(film.alike[step])} where both are of one class.`;
  }

  const report = node("p", { "aria-live": "polite" });
  const slider = Play.slider("step", { min: 0, max: last, step: 1, value: 0 }, String, value => {
    pause();
    go(value);
  });
  const input = slider.querySelector("input"), output = slider.querySelector("output");
  const player = Play.button("Play", () => timer ? pause() : play());

  /** Show a step. */
  function go(to) {
    step = to;
    input.value = output.value = step;
    input.setAttribute("aria-valuetext", String(step));
    drawMatrix();
    for (const { move } of charts) move();
    report.textContent = said();
  }

  function play() {
    report.setAttribute("aria-live", "off");  // nobody listens as fast as that
    player.textContent = "Pause";
    timer = setInterval(() => step < last ? go(step + 1) : pause(), PACE);
    go(step < last ? step : 0);
  }

  function pause() {
    if (!timer) return;
    clearInterval(timer);
    timer = null;
    player.textContent = "Play";
    report.setAttribute("aria-live", "polite");
    report.textContent = said();
  }

  box.classList.add("play-film");
  box.append(
    node("div", { class: "player" }, player, slider),
    node("div", { class: "scene" }, node("div", {}, matrix, scale), node("div", {}, ...charts.map(({ figure }) => figure))),
    report,
    node("p", { class: "note" }, "As in the figure above, z is computed in evaluation mode, where BatchNorm uses running means. "
      + "They lag behind a network that changes fast: hence the swings in the first half."),
  );
  go(0);
});
