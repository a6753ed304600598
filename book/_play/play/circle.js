"use strict";
/* Pull and push: embeddings on a circle that are dragged, with what a step of gradient descent does to them. The losses
   are those of lib/losses.py, NT-Xent and both forms of SupCon, for points of the plane. */
(() => {
  const { node, button, minus } = Play;
  const LONGEST_STEP = 0.2;  // radians, for a force of 1: what one step at a temperature of 0.4 or more moves
  const STEP_TIME = 80;      // milliseconds of play in which a step is made, in parts
  const FADED = 1e-4;        // where no force is larger, play ends
  const RADIUS = 100;        // of the circle, in the picture's units
  const ARROW = 90;          // the length of an arrow for a force of 1
  const ORBIT = 127;         // where names stand
  const LINE = 17;           // the height of a name
  const NEAR = 0.15;         // radians; names of points so near stand in one place

  // By the figure: its points (two views of each image, the first is the anchor) and how they are told.
  const FIGURES = {
    "loss-circle": {
      names: ["A1", "A2", "B1", "B2", "C1", "C2"],
      degrees: [0, 40, 150, 170, 250, 285],
      subsets: { 4: "A and B", 6: "A, B and C" },
      temperature: 0.5,
      alike: [0, 1],  // images that labels put in one class
      labels: "labels: B is a second A",
      followed: "all",
      look: "by-image",
    },
    "positives-plane": {
      names: ["cat 1 a", "cat 1 b", "cat 2 a", "cat 2 b", "dog a", "dog b"],
      degrees: [90, 15, 172, 205, 250, 305],
      subsets: null,
      temperature: 1,
      alike: [0, 1],
      labels: "labels: both cats are one class",
      followed: "anchor",
      look: "by-role",
    },
  };
  const SHAPES = [  // of the images' points, about the origin
    "M7.5 0A7.5 7.5 0 1 1 -7.5 0A7.5 7.5 0 1 1 7.5 0Z",
    "M-6.7 -6.7H6.7V6.7H-6.7Z",
    "M0 -8.5L8 6H-8Z",
  ];

  /** The logarithm of a sum of exponentials, and each one's share of the sum. */
  function logSumExp(values) {
    const largest = Math.max(...values);
    const powers = values.map((value) => Math.exp(value - largest));
    const sum = powers.reduce((a, b) => a + b);
    return { log: largest + Math.log(sum), shares: powers.map((power) => power / sum) };
  }

  /** The loss of one anchor, and its derivatives by the similarities with the others, by lib/losses.py's equations.
      angles: of all points; classes: of all points, equal for positives; push: whether the sum over all others is
      there; inside: whether the mean over the positives is inside the logarithm (L_in). slopes: times the temperature. */
  function lossOf(anchor, angles, classes, { temperature, push, inside }) {
    const others = angles.map((_, j) => j).filter((j) => j !== anchor);
    const positives = others.filter((j) => classes[j] === classes[anchor]);
    const similarity = (j) => Math.cos(angles[anchor] - angles[j]) / temperature;
    const slopes = angles.map(() => 0);
    let loss = 0;

    if (push) {
      const all = logSumExp(others.map(similarity));
      loss += all.log;
      others.forEach((j, at) => { slopes[j] += all.shares[at]; });
    }
    const pull = logSumExp(positives.map(similarity));
    if (inside) loss -= pull.log - Math.log(positives.length);
    positives.forEach((j, at) => {
      if (!inside) loss -= similarity(j) / positives.length;
      slopes[j] -= inside ? pull.shares[at] : 1 / positives.length;
    });
    return { loss, slopes, others, positives };
  }

  /** The force on each point along the circle, counter-clockwise: less the gradient of the anchors' losses, summed,
      times the temperature. */
  function forcesOf(anchors, angles, losses) {
    const forces = angles.map(() => 0);
    for (const i of anchors) {
      losses[i].slopes.forEach((slope, j) => {
        const turn = slope * Math.sin(angles[i] - angles[j]);  // less slope * d cos / d angle of i; of j: the opposite
        forces[i] += turn;
        forces[j] -= turn;
      });
    }
    return forces;
  }

  const nats = (value) => Play.exact(value, minus(value.toFixed(4)));
  const place = (angle, radius = RADIUS) => [radius * Math.cos(angle), -radius * Math.sin(angle)];
  const positive = (degrees) => ((degrees % 360) + 360) % 360;
  const inDegrees = (angle) => positive(angle * 180 / Math.PI);

  Play.element("circle.js", (box, id) => {
    const figure = FIGURES[id];
    const start = figure.degrees.map((degrees) => degrees * Math.PI / 180);
    const { temperature, followed: followedFirst } = figure;
    const settings = { temperature, push: true, labelled: false, inside: false, followed: followedFirst };
    const anchorName = figure.names[0];
    let count = figure.subsets ? 4 : 6;
    let angles = start.slice(0, count);
    let held = -1;       // the point under the pointer
    let before = null;   // the time of the last frame, while it plays

    const image = (i) => Math.floor(i / 2);
    const classOf = (i) => (settings.labelled && figure.alike.includes(image(i)) ? figure.alike[0] : image(i));

    /** All that follows from where the points are. */
    function state() {
      const classes = angles.map((_, i) => classOf(i));
      const inside = settings.labelled && settings.inside;
      const losses = angles.map((_, i) => lossOf(i, angles, classes, { ...settings, inside }));
      const anchors = settings.followed === "all" ? angles.map((_, i) => i) : [0];
      return { losses, forces: forcesOf(anchors, angles, losses) };
    }

    /** A step of gradient descent, or a part of one. At lower temperatures it is shorter, so that it leads down. */
    function descend(part) {
      const { forces } = state();
      const length = part * Math.min(LONGEST_STEP, settings.temperature / 2);
      angles = angles.map((angle, i) => (i === held ? angle : angle + length * forces[i]));
      return Math.max(...forces.map(Math.abs)) > FADED;
    }

    // ---- what is seen
    const circle = node("circle", { r: RADIUS, class: "track" });
    const arrows = node("g"), dots = node("g"), names = node("g", { "aria-hidden": "true" });
    const picture = node("svg", { viewBox: "-180 -152 360 304", class: `circle ${figure.look}`, role: "group",
      "aria-label": "Embeddings on a circle; each can be moved" }, circle, arrows, dots, names);
    const ofAll = node("output"), ofAnchor = node("output"), ofEqual = node("span");
    const rows = node("tbody");
    const still = node("p", { role: "status" }, `No force is larger than ${FADED}: the points rest. Where all lie in one place `,
      "the forces cancel, and a point moved a little sets them off.");
    const readout = node("div", { class: "readout" },
      node("table", {},
        node("caption", {}, "Loss in nats"),
        node("tr", {}, node("th", { scope: "row" }, "mean over all anchors"), node("td", {}, ofAll)),
        node("tr", {}, node("th", { scope: "row" }, `${anchorName} alone`), node("td", {}, ofAnchor)),
        node("tr", {}, node("th", { scope: "row" }, "either, if all points were equal"), node("td", {}, ofEqual))),
      node("table", {},
        node("caption", {}, `Forces by ${anchorName}'s loss alone`),
        node("thead", {}, node("tr", {}, node("th", { scope: "col" }, "with"), node("th", { scope: "col" }, "cosine"),
          node("th", { scope: "col" }, "force"))),
        rows));

    const handles = figure.names.map((name, i) => handle(name, i));

    /** A point to drag: by pointer, by finger, or with the arrow keys. */
    function handle(name, i) {
      const point = node("g", { class: "point", role: "slider", tabindex: 0, "aria-label": name, "aria-valuemin": 0,
        "aria-valuemax": 360,
        pointerdown(event) {
          held = i;
          point.setPointerCapture(event.pointerId);
          point.focus({ preventScroll: true, focusVisible: false });
          event.preventDefault();
        },
        // else the page scrolls: Chromium does not heed touch-action of an SVG's parts
        touchstart: (event) => event.preventDefault(),
        pointermove(event) {
          if (held !== i) return;
          const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
          if (Math.hypot(at.x, at.y) > RADIUS / 20) move(i, Math.atan2(-at.y, at.x));
        },
        pointerup() { held = -1; },
        pointercancel() { held = -1; },
        keydown(event) {
          const by = { ArrowRight: 5, ArrowUp: 5, ArrowLeft: -5, ArrowDown: -5, PageUp: 30, PageDown: -30 }[event.key];
          const to = { Home: 0, End: 360 }[event.key];
          if (!by && to === undefined) return;
          event.preventDefault();
          move(i, (by ? inDegrees(angles[i]) + (event.shiftKey ? by / 5 : by) : to) * Math.PI / 180);
        },
      }, node("circle", { r: 17, class: "reach" }), node("path", { d: SHAPES[image(i)] }));
      return point;
    }

    function move(i, angle) {
      angles[i] = angle;
      draw();
    }

    function draw() {
      still.hidden = true;
      const { losses, forces } = state();
      const { others, positives, slopes } = losses[0];
      const role = (i) => (i === 0 ? "anchor" : positives.includes(i) ? "positive" : "negative");

      arrows.replaceChildren();
      angles.forEach((angle, i) => {
        const [x, y] = place(angle);
        const degrees = inDegrees(angle);
        handles[i].setAttribute("transform", `translate(${x} ${y})`);
        handles[i].setAttribute("class", `point ${role(i)}`);
        handles[i].setAttribute("aria-valuenow", degrees);
        handles[i].setAttribute("aria-valuetext", `${Math.round(degrees)} degrees`);
        arrows.append(arrow(angle, forces[i], role(i), figure.names[i]));
      });
      names.replaceChildren(...clusters(angles).flatMap((members) => written(members)));

      const mean = losses.reduce((sum, { loss }) => sum + loss, 0) / count;
      const equal = settings.push ? Math.log(count - 1) : -1 / settings.temperature;
      ofAll.replaceChildren(nats(mean));
      ofAnchor.replaceChildren(nats(losses[0].loss));
      ofEqual.replaceChildren(nats(equal), settings.push ? ` = ln ${count - 1}` : " = \u22121/τ");
      rows.replaceChildren(...others.map((j) => {
        const size = Math.abs(slopes[j]).toFixed(3);
        const said = Number(size) === 0 ? "none" : slopes[j] < 0 ? `pull ${size}` : `push ${size}`;
        return node("tr", {}, node("th", { scope: "row" }, figure.names[j]),
          node("td", {}, minus(Math.cos(angles[0] - angles[j]).toFixed(2))), node("td", {}, Play.exact(slopes[j], said)));
      }));
    }

    /** From a point, along the tangent; its length is the root of the force. */
    function arrow(angle, force, role, name) {
      const [x, y] = place(angle);
      const length = ARROW * Math.sign(force) * Math.sqrt(Math.abs(force));
      const along = [-Math.sin(angle), -Math.cos(angle)];  // counter-clockwise, y downwards
      const at = (forth, aside) =>
        [x + along[0] * forth + Math.cos(angle) * aside, y + along[1] * forth - Math.sin(angle) * aside];
      const tip = at(length, 0);
      const drawn = node("g", { class: `arrow ${role}`, "data-of": name },
        node("line", { x1: x, y1: y, x2: tip[0], y2: tip[1] }));
      if (Math.abs(length) > 12) {  // else the point covers it
        const back = length - 9 * Math.sign(length);
        drawn.append(node("path", { d: `M${at(back, 6)}L${tip}L${at(back, -6)}` }));
      }
      return drawn;
    }

    /** Points whose names would lie on each other, in one list. */
    function clusters(all) {
      const found = [];
      all.forEach((angle, i) => {
        const beside = found.find(([first]) => Math.cos(angle - all[first]) > Math.cos(NEAR));
        if (beside) beside.push(i);
        else found.push([i]);
      });
      return found;
    }

    /** The names of points in one place, one below the other. */
    function written(members) {
      const [x, y] = place(angles[members[0]], ORBIT);
      const turned = Math.abs(y) / ORBIT;  // 1 above and below the circle, where the lines grow away from it
      const lines = members.length > 3 ? [`${members.length} points`] : members.map((i) => figure.names[i]);
      const side = turned > 0.92 ? "middle" : x > 0 ? "start" : "end";
      const inwards = side === "middle" ? 0 : 10 * Math.sign(x);  // a name begins there, and has no middle
      const half = (lines.length - 1) / 2;
      return lines.map((line, at) => node("text", { x: x - inwards, "text-anchor": side, "dominant-baseline": "central",
        y: y + LINE * (at - half + half * Math.sign(y) * turned) }, line));
    }

    // ---- what is asked
    const player = button("Play", () => (before === null ? play() : stop()));

    function play() {
      player.textContent = "Stop";
      for (const output of [ofAll, ofAnchor]) output.setAttribute("aria-live", "off");
      before = performance.now();
      requestAnimationFrame(frame);
    }

    function stop() {
      player.textContent = "Play";
      before = null;
      for (const output of [ofAll, ofAnchor]) output.removeAttribute("aria-live");
      draw();
    }

    /** Stop, and say so where nothing moves. */
    function rest() {
      stop();
      still.hidden = false;
    }

    function frame(now) {
      if (before === null) return;
      const passed = Math.max(0, Math.min(now - before, 50));
      before = now;
      const goesOn = descend(passed / STEP_TIME);
      if (box.hidden) return stop();
      if (!goesOn && held < 0) return rest();
      draw();
      requestAnimationFrame(frame);
    }

    function put(where) {
      angles = where.slice(0, count);
      dots.replaceChildren(...handles.slice(0, count));
      stop();
    }

    const set = (name) => (value) => {
      settings[name] = value;
      mean.hidden = !settings.labelled;
      draw();
    };
    const mean = Play.choice("mean over the positives", { out: "outside the logarithm, L_out", in: "inside, L_in" },
      "out", (value) => set("inside")(value === "in"));
    mean.hidden = true;
    const subsets = figure.subsets && Play.choice("images", figure.subsets, String(count), (value) => {
      count = Number(value);
      put(start);
    });
    const labels = Play.tick(figure.labels, false, set("labelled"));
    const push = Play.tick("push: the sum over all others", true, set("push"));
    const followed = Play.choice("arrows and steps",
      { all: "by the loss of all anchors", anchor: `by ${anchorName}'s alone` }, followedFirst, set("followed"));

    box.append(
      node("p", {}, "Drag a point, or focus it and use the arrow keys. An arrow shows in which direction the next ",
        "step of gradient descent takes a point. Its length is the root of the force, the gradient times τ, so that weak ones are seen."),
      node("div", { class: "columns" }, picture, readout),
      ...(subsets ? [subsets] : []),
      node("div", {}, labels, push), mean, followed,
      Play.temperature(settings.temperature, set("temperature")),
      node("div", { class: "buttons" }, player, button("One step", () => { descend(1); draw(); }),
        button("All at one point", () => put(angles.map(() => angles[0]))),
        button("Reset the points", () => put(start))),
      still);
    put(start);
  });
})();
