"use strict";
/* Two random views of a picture, drawn and computed as lib.augmentations does it: the same seed gives the same views.
   Colours are three planes r, g, b of numbers in [0, 1], kept in 32 bits as the package keeps them. */
Play.element("views.js", box => {
  const { node } = Play;
  const { pictures, recipes } = Play.data.photographs;
  const CREDITS = {
    dahlia: "Photograph: flower.jpg by vultilion, CC BY 2.0, from scikit-learn; here cut, made smaller and augmented.",
    pagoda: "Photograph: china.jpg by danielbuechele, CC BY 2.0, from scikit-learn; here cut, made smaller and augmented.",
    digit: "Digit from scikit-learn, here in a random hue.",
  };
  const STRONG = [0.5, 0.5, 0.5, 0.1];  // UvA's colours, where a recipe has none and the reader asks for some
  const ATTEMPTS = 10;                  // at a crop that fits
  const LUMA = [0.2989, 0.587, 0.114];
  const OPERATIONS = ["brightness", "contrast", "saturation", "hue"];
  const ORDERS = permutations([0, 1, 2, 3]);
  const LINES = ["", "6 4"];            // the frames of the two crops

  // --- what is drawn --------------------------------------------------------------------------------------------------

  function permutations(values) {
    if (values.length < 2) return [values];
    return values.flatMap((value, place) => permutations(values.filter((_, n) => n !== place)).map(rest => [value, ...rest]));
  }

  /** The block of four 64-bit numbers that Philox 4x64-10 makes of a counter (4) and a key (2). */
  function philox(counter, key) {
    let [a, b, c, d] = counter, [k, l] = key;
    for (let round = 0; round < 10; round++) {
      const first = 0xD2E7470EE14C6C93n * a, second = 0xCA5A826395121157n * c;
      [a, b, c, d] = [second >> 64n ^ b ^ k, BigInt.asUintN(64, second), first >> 64n ^ d ^ l, BigInt.asUintN(64, first)];
      k = BigInt.asUintN(64, k + 0x9E3779B97F4A7C15n);
      l = BigInt.asUintN(64, l + 0xBB67AE8584CAA73Bn);
    }
    return [a, b, c, d];
  }

  /** The first 32 numbers in [0, 1) of numpy's generator for (seed, step 0, view). */
  function uniform(seed, view) {
    const numbers = [];
    for (let block = 1n; numbers.length < 32; block++) {
      for (const bits of philox([block, 0n, 0n, BigInt(view)], [BigInt(seed), 0n])) {
        numbers.push(Number(bits >> 11n) / 2 ** 53);
      }
    }
    return numbers;
  }

  /** What happens to an image in a view, as lib.augmentations.draw finds it for the first image of a batch. Its 31 numbers
      leave one of 32, which decides about the blur where a recipe blurs some of its views only.
      crop: null, or attempts [area, ratio]; order: of the operations 0 to 3; jitter: their amounts; sigma: null for none. */
  function draw(recipe, seed, view) {
    const u = uniform(seed, view);
    const between = (low, high, share) => low + share * (high - low);
    const [low, high] = recipe.ratio.map(Math.log);
    const attempt = n => [
      Math.fround(between(...recipe.crop, u[2 * n])),
      Math.fround(Math.exp(between(low, high, u[2 * n + 1]))),
    ];
    const rest = u.slice(2 * ATTEMPTS);
    const amount = (strength, n) => {
      const [least, most] = n === 3 ? [-strength, strength] : [Math.max(1 - strength, 0), 1 + strength];
      return Math.fround(between(least, most, rest[3 + n]));
    };
    return {
      crop: recipe.crop && Array.from({ length: ATTEMPTS }, (_, n) => attempt(n)),
      place: [rest[0], rest[1]],
      flip: rest[2] < recipe.flip,
      jitter: recipe.jitter.map(amount),
      order: ORDERS[Math.floor(rest[7] * ORDERS.length)],
      jittered: rest[8] < recipe.jittered,
      grey: rest[9] < recipe.grey,
      sigma: recipe.sigma && rest[11] < recipe.blurred ? Math.fround(between(...recipe.sigma, rest[10])) : null,
    };
  }

  /** The crop of a square of so many pixels: [top, left, height, width]. The first attempt that fits, else the middle. */
  function boxOf({ crop, place }, side) {
    if (!crop) return [0, 0, side, side];
    for (const [area, ratio] of crop) {
      const [h, w] = [area * side * side / ratio, area * side * side * ratio].map(square => Math.round(Math.sqrt(square)));
      if (h > 0 && h <= side && w > 0 && w <= side) {
        return [Math.floor(place[0] * (side - h + 1)), Math.floor(place[1] * (side - w + 1)), h, w];
      }
    }
    return [0, 0, side, side];  // of a square every allowed ratio leaves all of it
  }

  // --- what is computed -----------------------------------------------------------------------------------------------

  /** For each of size pixels the pixels of the crop below its triangle, and their weights, which add up to 1. */
  function triangles(start, length, size, mirrored) {
    const scale = length / size, support = Math.max(scale, 1);
    const found = Array.from({ length: size }, (_, target) => {
      const centre = (target + 0.5) * scale - 0.5;
      const first = Math.max(0, Math.floor(centre - support) + 1);
      const weights = [];
      for (let n = first; n < length && n < centre + support; n++) weights.push(1 - Math.abs(n - centre) / support);
      const total = weights.reduce((sum, weight) => sum + weight);
      return { first: start + first, weights: weights.map(weight => weight / total) };
    });
    return mirrored ? found.reverse() : found;
  }

  /** A crop of a picture at a view's size, mirrored where flip: planes r, g, b. */
  function resized({ pixels, side }, [top, left, h, w], flip, size) {
    const rows = triangles(top, h, size, false), columns = triangles(left, w, size, flip);
    return [0, 1, 2].map(channel => {
      const plane = new Float32Array(size * size), line = new Float32Array(side);
      rows.forEach((row, i) => {
        line.fill(0);
        row.weights.forEach((weight, t) => {
          const start = 4 * (row.first + t) * side + channel;
          for (let x = 0; x < side; x++) line[x] += weight * pixels[start + 4 * x] / 255;
        });
        columns.forEach((column, j) => {
          plane[i * size + j] = column.weights.reduce((sum, weight, t) => sum + weight * line[column.first + t], 0);
        });
      });
      return plane;
    });
  }

  const clipped = x => Math.min(Math.max(x, 0), 1);
  const grey = ([r, g, b], p) => LUMA[0] * r[p] + LUMA[1] * g[p] + LUMA[2] * b[p];

  /** factor x + (1 - factor) base, in place. base: black, the mean grey, or a pixel's own grey. */
  function blend(planes, operation, factor) {
    const count = planes[0].length;
    let mean = 0;
    if (operation === 1) for (let p = 0; p < count; p++) mean += grey(planes, p) / count;
    for (let p = 0; p < count; p++) {
      const base = operation === 2 ? grey(planes, p) : mean;
      for (const plane of planes) plane[p] = clipped(factor * plane[p] + (1 - factor) * base);
    }
  }

  /** Turn every pixel's hue by a part of a turn, in place. */
  function turnHue(planes, turn) {
    const [red, green, blue] = planes;
    for (let p = 0; p < red.length; p++) {
      const r = red[p], g = green[p], b = blue[p];
      const value = Math.max(r, g, b), chroma = value - Math.min(r, g, b);
      const divisor = chroma || 1;
      let hue = 4 + (r - g) / divisor;
      if (value === g) hue = 2 + (b - r) / divisor;
      if (value === r) hue = (g - b) / divisor;
      [5, 3, 1].forEach((sixths, channel) => {
        let k = hue + 6 * turn + sixths;
        k -= 6 * Math.floor(k / 6);
        planes[channel][p] = value - chroma * clipped(Math.min(k, 4 - k));
      });
    }
  }

  /** Gaussian blur of a plane of size by size pixels, edges reflected; along the rows, then along the columns. */
  function blurred(plane, size, sigma, kernel) {
    const radius = Math.floor(kernel / 2);
    const weights = Array.from({ length: kernel }, (_, t) => Math.exp(-0.5 * ((t - radius) / sigma) ** 2));
    const total = weights.reduce((sum, weight) => sum + weight);
    const reflected = n => n < 0 ? -n : n >= size ? 2 * size - 2 - n : n;
    const along = (from, place) => {
      const to = new Float32Array(size * size);
      for (let i = 0; i < size; i++) {
        for (let j = 0; j < size; j++) {
          let sum = 0;
          for (let t = 0; t < kernel; t++) sum += weights[t] / total * from[place(i, j, reflected, t - radius)];
          to[i * size + j] = sum;
        }
      }
      return to;
    };
    const rows = along(plane, (i, j, inside, by) => i * size + inside(j + by));
    return along(rows, (i, j, inside, by) => inside(i + by) * size + j);
  }

  /** The view of a picture: planes r, g, b. */
  function view(picture, recipe, drawn, size) {
    let planes = resized(picture, boxOf(drawn, picture.side), drawn.flip, size);
    if (drawn.jittered) {
      for (const operation of drawn.order) {
        if (operation === 3) turnHue(planes, drawn.jitter[3]);
        else blend(planes, operation, drawn.jitter[operation]);
      }
    }
    if (drawn.grey) {
      const plane = planes[0].map((_, p) => grey(planes, p));
      planes = [plane, plane, plane];
    }
    return drawn.sigma ? planes.map(plane => blurred(plane, size, drawn.sigma, recipe.kernel)) : planes;
  }

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
    const [top, left, h, w] = boxOf(drawn, side);
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

  /** Put the five steps at what the recipe says. */
  function reset() {
    steps = {};
    controls.querySelectorAll(".step").forEach(row => row.remove());
    for (const [key, [words, says, scale, shown, initial]] of Object.entries(STEPS)) {
      const [on, strength] = initial(recipes[name]);
      steps[key] = { on: Boolean(on), strength };
      const slider = Play.slider(says, { ...scale, value: strength }, shown, value => {
        steps[key].strength = value;
        show();
      });
      const input = slider.querySelector("input");
      input.setAttribute("aria-label", `${words}, ${says}`);
      input.disabled = !on;
      controls.append(node("div", { class: "step" }, Play.tick(words, Boolean(on), ticked => {
        steps[key].on = ticked;
        input.disabled = !ticked;
        show();
      }), slider));
    }
    show();
  }

  /** A picture's pixels, red, green, blue and opacity each. */
  async function pixelsOf(word) {
    if (read[word]) return read[word];
    const image = new Image();
    image.src = pictures[word].source;
    await image.decode();
    const side = image.naturalWidth;
    const canvas = node("canvas", { width: side, height: side });
    canvas.getContext("2d").drawImage(image, 0, 0);
    read[word] = { side, pixels: canvas.getContext("2d").getImageData(0, 0, side, side).data };
    return read[word];
  }

  /** Show pixels, red, green, blue and opacity each, on a canvas of so many a side. */
  function paint(canvas, pixels, side) {
    canvas.width = canvas.height = side;
    canvas.getContext("2d").putImageData(new ImageData(pixels, side, side), 0, 0);
  }

  /** The frame of a crop on the photograph: white on black, with the view's number. */
  function frame([top, left, h, w], side, number) {
    const unit = side / 256;
    const outline = (stroke, width, dashes) => node("rect", {
      x: left, y: top, width: w, height: h, fill: "none", stroke, "stroke-width": width * unit,
      "stroke-dasharray": dashes.split(" ").filter(Boolean).map(x => x * unit).join(" ") || null,
    });
    const x = left + (4 + 22 * (number - 1)) * unit, y = top + 4 * unit;
    return [
      outline("black", 5, ""), outline("white", 2.5, LINES[number - 1]),
      node("rect", { x, y, width: 18 * unit, height: 20 * unit, fill: "black" }),
      node("text", {
        x: x + 9 * unit, y: y + 15.5 * unit, "text-anchor": "middle", style: `fill: white; font-size: ${16 * unit}px`,
      }, String(number)),
    ];
  }

  /** Draw both views, and say what was drawn. */
  async function show() {
    const word = chosen, picture = await pixelsOf(word);
    if (word !== chosen) return;  // another was chosen while it was read
    const { side } = picture, { size } = pictures[word], recipe = recipeNow();
    paint(photograph, picture.pixels, side);
    photograph.setAttribute("aria-label", `The ${word}, with the frames of both crops`);
    frames.setAttribute("viewBox", `0 0 ${side} ${side}`);
    const drawn = canvases.map((_, n) => draw(recipe, seed, n));
    frames.replaceChildren(...drawn.flatMap((one, n) => frame(boxOf(one, side), side, n + 1)));
    canvases.forEach((canvas, n) => {
      const pixels = new Uint8ClampedArray(4 * size * size).fill(255);
      view(picture, recipe, drawn[n], size).forEach((plane, channel) => {
        for (let p = 0; p < plane.length; p++) pixels[4 * p + channel] = 255 * plane[p];
      });
      paint(canvas, pixels, size);
    });
    range.textContent = ranges(recipe);
    drawnText.replaceChildren(...drawn.map((one, n) =>
      node("p", {}, node("strong", {}, `View ${n + 1}: `), account(one, side))));
    credit.textContent = CREDITS[word];
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
    node("label", { class: "recipe" }, node("span", {}, "Recipe"), recipeChoice),
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
