"use strict";
/* Two random views of a picture, by a recipe that a reader can change. */
Play.element("views.js", box => {
  const { node } = Play;
  const { pictures, recipes } = Play.data.photographs;
  const STRONG = [0.5, 0.5, 0.5, 0.1];  // UvA's colours, where a recipe has none and the reader asks for some
  const OPERATIONS = ["brightness", "contrast", "saturation", "hue"];

  // --- what is said ---------------------------------------------------------------------------------------------------

  const percent = share => `${Math.round(100 * share)}\u00a0%`;
  const signed = (x, digits) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(digits)}`;

  /** A recipe in a sentence. */
  function ranges({ crop, flip, jitter, jittered, grey: greys, sigma, blurred: share }) {
    const said = [];
    if (crop) said.push(`crops of ${percent(crop[0])} of the area or more`);
    if (flip) said.push(`${percent(flip)} mirrored`);
    if (jittered) {
      const [brightness, contrast, saturation, hue] = jitter.map(x => x.toFixed(2));
      said.push(`${percent(jittered)} with other colours: brightness ±\u00a0${brightness}, `
        + `contrast ±\u00a0${contrast}, saturation ±\u00a0${saturation}, hue ±\u00a0${hue}\u00a0turn`);
    }
    if (greys) said.push(`${percent(greys)} grey`);
    if (sigma) said.push(`${percent(share)} blurred by ${sigma[0].toFixed(1)} to ${sigma[1].toFixed(1)} pixels`);
    return said.length ? `Views: ${said.join("; ")}.` : "Views: the picture as it is.";
  }

  /** What was drawn for a view, in words. */
  function account(drawn, side) {
    const [top, left, h, w] = Views.boxOf(drawn, side);
    const said = [];
    said.push(drawn.crop
      ? `crop of ${h} × ${w} pixels, ${percent(h * w / side ** 2)} of the area, ${top} from the top, ${left} from the left`
      : "the whole picture");
    said.push(drawn.flip ? "mirrored" : "not mirrored");
    said.push(drawn.jittered
      ? drawn.order.map(n => n === 3 ? `hue ${signed(drawn.jitter[3], 3)}\u00a0turn`
        : `${OPERATIONS[n]} ×\u00a0${drawn.jitter[n].toFixed(2)}`).join(", ") + ", in this order"
      : "colours kept");
    said.push(drawn.grey ? "then grey" : "not grey");
    said.push(drawn.sigma ? `blurred by ${drawn.sigma.toFixed(2)} pixels` : "not blurred");
    return said.join("; ") + ".";
  }

  // --- what is touched ------------------------------------------------------------------------------------------------

  let chosen = "dahlia", name = "uva", seed = 1;
  let steps;       // on, and strength, of each step
  const read = {}; // pictures, read into pixels

  /** The recipe as the five steps have it now. */
  function recipeNow() {
    const base = recipes[name];
    const colours = base.jitter.some(x => x) ? base.jitter : STRONG;
    const { crop, flip, colour, grey: greys, blur } = steps;
    return {
      ...base,
      crop: crop.on ? [crop.strength, 1] : null,
      flip: flip.on ? flip.strength : 0,
      jitter: colours.map((x, n) => n === 3 ? Math.min(colour.strength * x, 0.5) : colour.strength * x),
      jittered: colour.on ? base.jittered || 0.8 : 0,
      grey: greys.on ? greys.strength : 0,
      sigma: blur.on ? [Math.min(0.1, blur.strength), blur.strength] : null,
    };
  }

  /** Each step's words, its slider's words and range, how its value is said, and what the recipe has. */
  const STEPS = {
    crop: ["Crop", "smallest", { min: 0.02, max: 1, step: 0.01 }, percent, r => [r.crop, r.crop?.[0] ?? 0.08]],
    flip: ["Flip", "share", { min: 0.05, max: 1, step: 0.05 }, percent, r => [r.flip, r.flip || 0.5]],
    colour: ["Colours", "range", { min: 0.1, max: 2, step: 0.1 }, x => `× ${x.toFixed(1)}`, r => [r.jittered, 1]],
    grey: ["Grey", "share", { min: 0.05, max: 1, step: 0.05 }, percent, r => [r.grey, r.grey || 0.2]],
    blur: ["Blur", "up to", { min: 0.1, max: 4, step: 0.1 }, x => `${x.toFixed(1)} px`, r => [r.sigma, r.sigma?.[1] ?? 2]],
  };

  const photograph = node("canvas", { role: "img" });
  const frames = node("svg", { "aria-hidden": "true" });
  const canvases = [0, 1].map(n => node("canvas", { role: "img", "aria-label": `View ${n + 1}` }));
  const controls = node("fieldset", { class: "steps" }, node("legend", {}, "The five steps"));
  const range = node("p", {}), credit = node("p", { class: "credit" }), drawnText = node("div", { "aria-live": "polite" });
  const seedText = node("output", {});
  const changed = node("span", { role: "status" }, "changed by you ", Play.button("Undo", reset));

  /** Put the five steps at what the recipe says. */
  function reset() {
    steps = {};
    changed.hidden = true;
    controls.querySelectorAll(".step").forEach(row => row.remove());
    for (const [key, [words, says, scale, shown, initial]] of Object.entries(STEPS)) {
      const [on, strength] = initial(recipes[name]);
      steps[key] = { on: Boolean(on), strength };
      const slider = Play.slider(says, { ...scale, value: strength }, shown, value => {
        steps[key].strength = value;
        change();
      });
      const input = slider.querySelector("input");
      input.setAttribute("aria-label", `${words}, ${says}`);
      input.disabled = !on;
      controls.append(node("div", { class: "step" }, Play.tick(words, Boolean(on), ticked => {
        steps[key].on = ticked;
        input.disabled = !ticked;
        change();
      }), slider));
    }
    show();
  }

  /** Show views by steps that are no longer the recipe's. */
  function change() {
    changed.hidden = false;
    show();
  }

  /** A picture's pixels, red, green, blue and opacity each. */
  async function pixelsOf(word) {
    if (read[word]) return read[word];
    const image = await Views.read(pictures[word].source), side = image.naturalWidth;
    const canvas = node("canvas", { width: side, height: side });
    canvas.getContext("2d").drawImage(image, 0, 0);
    read[word] = { side, pixels: canvas.getContext("2d").getImageData(0, 0, side, side).data };
    return read[word];
  }

  /** Draw both views, and say what was drawn. */
  async function show() {
    const word = chosen, picture = await pixelsOf(word);
    if (word !== chosen) return;  // another was chosen while it was read
    const { side } = picture, { size } = pictures[word], recipe = recipeNow();
    Views.paint(photograph, picture);
    photograph.setAttribute("aria-label", `The ${word}, with the frames of both crops`);
    frames.setAttribute("viewBox", `0 0 ${side} ${side}`);
    const drawn = canvases.map((_, n) => Views.draw(recipe, seed, n));
    frames.replaceChildren(...drawn.flatMap((one, n) => Views.frame(Views.boxOf(one, side), side, n + 1)));
    canvases.forEach((canvas, n) => Views.paintView(canvas, Views.view(picture, recipe, drawn[n], size)));
    range.textContent = ranges(recipe);
    drawnText.replaceChildren(...drawn.map((one, n) =>
      node("p", {}, node("strong", {}, `View ${n + 1}: `), account(one, side))));
    credit.textContent = pictures[word].credit;
    seedText.value = `seed ${seed}`;
  }

  const recipeChoice = node("select", { change: event => {
    name = event.target.value;
    reset();
  } });
  for (const [key, recipe] of Object.entries(recipes)) {
    recipeChoice.append(node("option", { value: key, selected: key === name }, recipe.name));
  }
  const words = Object.fromEntries(Object.keys(pictures).map(word => [word, word]));
  box.classList.add("play-views");
  box.append(
    Play.choice("Picture", words, chosen, value => {
      chosen = value;
      show();
    }),
    node("label", { class: "recipe" }, node("span", {}, "Recipe"), recipeChoice), changed,
    node("div", { class: "pictures" },
      node("div", { class: "framed" }, photograph, frames),
      ...canvases.map((canvas, n) => node("div", { class: "made" }, canvas, node("div", { class: "caption" }, `view ${n + 1}`)))),
    node("div", { class: "drawing" }, Play.button("Draw two others", () => {
      seed += 1;
      show();
    }), seedText),
    controls,
    range,
    drawnText,
    credit,
  );
  reset();
});
