"use strict";
/* Random views of a picture, drawn and computed as lib.augmentations does it: the same seed gives the same views. A picture
   is { side, pixels }: a square of bytes, red, green, blue and opacity of each pixel. A view is three planes r, g, b of
   numbers in [0, 1], kept in 32 bits as the package keeps them. */
const Views = (() => {
  const { node } = Play;
  const ATTEMPTS = 10;                  // at a crop that fits
  const LUMA = [0.2989, 0.587, 0.114];
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

  // --- what is shown --------------------------------------------------------------------------------------------------

  /** An image that comes with the page, ready to be drawn. source: its address. */
  async function read(source) {
    const image = new Image();
    image.src = source;
    await image.decode();
    return image;
  }

  /** Show pixels, red, green, blue and opacity each, on a canvas of so many a side. */
  function paint(canvas, { side, pixels }) {
    canvas.width = canvas.height = side;
    canvas.getContext("2d").putImageData(new ImageData(pixels, side, side), 0, 0);
  }

  /** Show a view on a canvas. */
  function paintView(canvas, planes) {
    const side = Math.sqrt(planes[0].length), pixels = new Uint8ClampedArray(4 * side * side).fill(255);
    planes.forEach((plane, channel) => {
      for (let p = 0; p < plane.length; p++) pixels[4 * p + channel] = 255 * plane[p];
    });
    paint(canvas, { side, pixels });
  }

  /** The frame of a crop on a picture of so many pixels a side: white on black, with the view's number. */
  function frame([top, left, h, w], side, number) {
    const unit = side / 256;
    const outline = (stroke, width, dashes) => node("rect", {
      x: left, y: top, width: w, height: h, fill: "none", stroke, "stroke-width": width * unit,
      "stroke-dasharray": dashes.split(" ").filter(Boolean).map(x => x * unit).join(" ") || null,
    });
    // the second one's in the corner across, since crops often share one
    const [x, y] = number === 1 ? [left + 4 * unit, top + 4 * unit] : [left + w - 28 * unit, top + h - 30 * unit];
    return [
      outline("black", 5, ""), outline("white", 2.5, LINES[number - 1]),
      node("rect", { x, y, width: 24 * unit, height: 26 * unit, fill: "black" }),
      node("text", {
        x: x + 12 * unit, y: y + 20 * unit, "text-anchor": "middle", style: `fill: white; font-size: ${21 * unit}px`,
      }, String(number)),
    ];
  }

  return { draw, boxOf, view, read, paint, paintView, frame };
})();
