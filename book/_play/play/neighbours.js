"use strict";
/* Who is near to whom: unseen images on a map, and the five nearest of the chosen one by each kind of features. Neighbours,
   cosines and shares are the chapter's; only the map is spread out here, so that no image covers another. */
Play.element("neighbours.js", box => {
  const { node } = Play;
  /* pictures: a sheet of them in rows of twenty, the first image at the left of the first row; labels: of each, places in
     classes; spots: on the map, from 0 to 1000; near: by the name of the features, of each image the places of its nearest
     ones and their cosines in thousandths, and the share of all neighbours that are of their image's class (alike). */
  const { pictures, labels, classes, spots, near } = Play.written("recorded-neighbours");
  const COLUMNS = 20, NARROW = 500, ROUNDS = 60;
  const count = labels.length, rows = Math.ceil(count / COLUMNS);
  const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  let chosen = labels.indexOf(Math.min(3, classes.length - 1)), followed = Object.keys(near)[2], centres = [];

  /** The attributes that show an image of the sheet. */
  const picture = (n, kind) => ({
    class: `picture ${kind}`,
    style: `background-position: ${n % COLUMNS / (COLUMNS - 1) * 100}% ${Math.floor(n / COLUMNS) / (rows - 1) * 100}%`,
  });

  // --- the map --------------------------------------------------------------------------------------------------------

  const options = labels.map((label, n) => node("div", {
    ...picture(n, "spot"), role: "option", id: `play-spot-${n}`, "aria-label": `${classes[label]}, image ${n + 1}`,
  }));
  const lines = node("svg", { "aria-hidden": "true" });
  const map = node("div", {
    class: "map", role: "listbox", tabindex: 0, "aria-label": `Map of ${count} test images: choose one by arrow keys`,
    click: event => {
      const { left, top } = map.getBoundingClientRect();
      choose(nearestTo([event.clientX - left - map.clientLeft, event.clientY - top - map.clientTop]));
    },
    keydown: event => {
      const to = event.key in STEPS ? nextTo(STEPS[event.key])
        : { PageDown: (chosen + 1) % count, PageUp: (chosen + count - 1) % count }[event.key];
      if (to == null) return;
      event.preventDefault();
      choose(to);
    },
  }, lines, ...options);

  function nearestTo([x, y]) {
    const far = centres.map(([a, b]) => Math.hypot(a - x, b - y));
    return far.indexOf(Math.min(...far));
  }

  /** The nearest image in a direction, or the chosen one where there is none. */
  function nextTo([right, down]) {
    const [x, y] = centres[chosen];
    let best = chosen, least = Infinity;
    centres.forEach(([a, b], n) => {
      const along = (a - x) * right + (b - y) * down, aside = Math.abs((a - x) * down) + Math.abs((b - y) * right);
      if (along > 0 && aside <= along && along + aside < least) [best, least] = [n, along + aside];
    });
    return best;
  }

  /** Spots on a map of so many pixels, those pushed apart that are nearer than a picture is wide. */
  function spread(width, height, size) {
    const inside = (x, all) => Math.min(Math.max(x, size / 2), all - size / 2);
    const points = spots.map(([x, y]) => [inside(x / 1000 * width, width), inside((1 - y / 1000) * height, height)]);
    for (let round = 0; round < ROUNDS; round++) {
      for (let i = 0; i < count; i++) {
        for (let j = 0; j < i; j++) {
          const dx = points[i][0] - points[j][0], dy = points[i][1] - points[j][1], far = Math.hypot(dx, dy) || 1;
          if (far >= size) continue;
          const push = (size - far) / 4 / far;
          points[i] = [inside(points[i][0] + push * dx, width), inside(points[i][1] + push * dy, height)];
          points[j] = [inside(points[j][0] - push * dx, width), inside(points[j][1] - push * dy, height)];
        }
      }
    }
    return points;
  }

  let laid = 0;

  /** Place the images, where the map has another width than before. */
  function lay() {
    const width = map.clientWidth;
    if (!width || width === laid) return;
    laid = width;
    const narrow = width < NARROW, size = narrow ? 18 : 26, height = Math.round(width * (narrow ? 1.3 : 0.75));
    map.style.height = `${height}px`;
    map.style.setProperty("--size", `${size}px`);
    lines.setAttribute("viewBox", `0 0 ${width} ${height}`);
    centres = spread(width, height, size);
    centres.forEach(([x, y], n) => {
      options[n].style.left = `${x - size / 2}px`;
      options[n].style.top = `${y - size / 2}px`;
    });
    mark();
  }

  /** Mark the chosen image on the map, and its neighbours by the features that are followed. */
  function mark() {
    const others = near[followed].places[chosen];
    options.forEach((option, n) => {
      option.setAttribute("aria-selected", String(n === chosen));
      option.classList.toggle("near", others.includes(n));
    });
    map.setAttribute("aria-activedescendant", options[chosen].id);
    if (!laid) return;
    const [x1, y1] = centres[chosen];
    lines.replaceChildren(...others.map(n => node("line", { x1, y1, x2: centres[n][0], y2: centres[n][1] })));
  }

  // --- the neighbours -------------------------------------------------------------------------------------------------

  const spaces = node("div", { class: "spaces" }), report = node("p", { "aria-live": "polite" });
  const query = node("div", { role: "img" });

  /** The neighbours of the chosen image by some features; each can be chosen in its turn. */
  function row(name) {
    const { places, cosines, alike } = near[name];
    const found = places[chosen].map((n, k) => {
      const other = labels[n] !== labels[chosen], cosine = Play.minus((cosines[chosen][k] / 1000).toFixed(3));
      const words = `${classes[labels[n]]}, image ${n + 1}, cosine ${cosine}${other ? ", another class" : ""}`;
      return node("button", { type: "button", class: "neighbour", "aria-label": words, click: () => {
        choose(n);
        spaces.querySelectorAll(".neighbour")[5 * Object.keys(near).indexOf(name) + k].focus();
      } }, node("span", picture(n, other ? "other" : "")), node("span", {}, cosine));
    });
    return node("div", { class: "space", role: "group", "aria-label": name },
      node("div", {}, node("strong", {}, name), node("br"), `${(100 * alike).toFixed(0)} % of the same class`),
      node("div", { class: "five" }, ...found));
  }

  /** Choose an image. */
  function choose(n) {
    chosen = n;
    const attributes = picture(n, "query");
    query.className = attributes.class;
    query.style = attributes.style;
    query.setAttribute("aria-label", classes[labels[n]]);
    spaces.replaceChildren(...Object.keys(near).map(row));
    const counts = Object.entries(near).map(([name, { places }]) =>
      `${places[n].filter(other => labels[other] === labels[n]).length} by ${name === "untrained" ? "the untrained network" : name}`);
    report.textContent = `Image ${n + 1} of ${count}, of class ${classes[labels[n]]}. Of its five nearest are of its class: `
      + `${counts.join(", ")}.`;
    mark();
  }

  box.classList.add("play-neighbours");
  box.style.setProperty("--sheet", `url("${pictures}")`);
  box.style.setProperty("--sheet-size", `${100 * COLUMNS}% ${100 * rows}%`);
  const names = Object.fromEntries(Object.keys(near).map(name => [name, name]));
  box.append(
    map,
    Play.choice("Lines on the map: nearest by", names, followed, value => {
      followed = value;
      mark();
    }),
    node("div", { class: "answer" }, query, report),
    spaces,
    node("p", { class: "note" }, `Near by cosine, among these ${count} test images alone; above it is among the training images. `
      + "A frame marks another class; in percent: neighbours of the same class, over all of these images. "
      + "The map is t-SNE of SimCLR's h, spread out a little. Its distances are no cosines."),
  );
  new ResizeObserver(lay).observe(map);
  lay();
  choose(chosen);
});
