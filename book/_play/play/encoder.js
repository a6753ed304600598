"use strict";
/* An exported encoder in plain JavaScript: a picture brought to size, h and z of a view. Everything agrees with the package:
   lib/data/decoding.py and lib/encoders.py. It needs nothing of the page. Features lie channels last, row by row:
   (S, S, C). Pictures and views are those of augment.js. */
const Encoder = (() => {
  const PIXELS = 2 ** 26, ELONGATED = 16;  // what lib/data/decoding.py refuses, the browser's memory too
  const STRIP = 2 ** 20;                   // pixels of a large picture that are read at a time

  /** Lets the page answer before the work goes on. */
  const pause = () => new Promise((done) => { setTimeout(done); });

  // ----------------------------------------------------------------------------------------------------------- weights

  /** Bytes written as base64. */
  function bytes(text) {
    const letters = atob(text), made = new Uint8Array(letters.length);
    for (let i = 0; i < made.length; i++) made[i] = letters.charCodeAt(i);
    return made;
  }

  /** Numbers of 32 bits, in base64; little-endian, as every machine that browsers run on. */
  const singles = (text) => new Float32Array(bytes(text).buffer);

  /** Numbers of 16 bits, in base64: a sign, 5 bits of exponent, 10 of fraction. Finite ones. */
  function halves(text) {
    const bits = new Uint16Array(bytes(text).buffer), made = new Float32Array(bits.length);
    for (let i = 0; i < made.length; i++) {
      const exponent = (bits[i] >> 10) & 31, fraction = bits[i] & 1023;
      const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
      made[i] = bits[i] >> 15 ? -size : size;
    }
    return made;
  }

  /** An encoder as tools/page_encoder.py writes it, its weights as numbers. */
  function decoded(written) {
    const layer = ({ weight, scale, shift, ...about }) =>
      ({ ...about, weight: halves(weight), scale: singles(scale), shift: singles(shift) });
    const blocks = written.blocks.map(({ residual, layers }) => ({ residual, layers: layers.map(layer) }));
    const head = written.head.map(({ weight, bias }) => ({ weight: halves(weight), bias: singles(bias) }));
    return { ...written, blocks, head };
  }

  // ----------------------------------------------------------------------------------------------------------- h and z

  /** The patches under a convolution's kernel, a row for each output pixel: (side * side, kernel * kernel * inputs). */
  function patches({ side, channels, values }, { kernel, stride }) {
    const outputs = (side + 2 - kernel) / stride + 1, line = kernel * channels;  // a border of 1 around
    const made = new Float32Array(outputs * outputs * kernel * line);
    let place = 0;
    for (let i = 0; i < outputs; i++) {
      for (let j = 0; j < outputs; j++) {
        const left = j * stride - 1, from = Math.max(0, left), to = Math.min(side, left + kernel);
        for (let k = 0; k < kernel; k++, place += line) {
          const row = i * stride - 1 + k;
          if (row < 0 || row >= side) continue;
          const start = row * side * channels;
          made.set(values.subarray(start + from * channels, start + to * channels), place + (from - left) * channels);
        }
      }
    }
    return { side: outputs, values: made };
  }

  /**
   * The matrix product of a (rows, inner) and the transpose of b (columns, inner): (rows, columns). Two rows by four
   * columns at a time, so that a number that is read is used more than once; rows are even, columns multiples of four.
   */
  function product(a, b, rows, inner, columns) {
    const made = new Float32Array(rows * columns);
    for (let i = 0; i < rows; i += 2) {
      for (let j = 0; j < columns; j += 4) {
        let p0 = i * inner, p1 = p0 + inner, q0 = j * inner, q1 = q0 + inner, q2 = q1 + inner, q3 = q2 + inner;
        let s00 = 0, s01 = 0, s02 = 0, s03 = 0, s10 = 0, s11 = 0, s12 = 0, s13 = 0;
        for (let k = 0; k < inner; k++) {
          const x = a[p0++], y = a[p1++], u = b[q0++], v = b[q1++], w = b[q2++], z = b[q3++];
          s00 += x * u; s01 += x * v; s02 += x * w; s03 += x * z;
          s10 += y * u; s11 += y * v; s12 += y * w; s13 += y * z;
        }
        const one = i * columns + j, two = one + columns;
        made[one] = s00; made[one + 1] = s01; made[one + 2] = s02; made[one + 3] = s03;
        made[two] = s10; made[two + 1] = s11; made[two + 2] = s12; made[two + 3] = s13;
      }
    }
    return made;
  }

  /** The largest of every 2 x 2. */
  function pooled({ side, channels, values }) {
    const half = side / 2, made = new Float32Array(half * half * channels);
    for (let i = 0, place = 0; i < half; i++) {
      for (let j = 0; j < half; j++) {
        const up = (2 * i * side + 2 * j) * channels, down = up + side * channels;
        for (let c = 0; c < channels; c++, place++) {
          const above = Math.max(values[up + c], values[up + channels + c]);
          made[place] = Math.max(above, values[down + c], values[down + channels + c]);
        }
      }
    }
    return { side: half, channels, values: made };
  }

  /** A convolution, a max-pool where there is one, BatchNorm (a factor and a summand for each channel) and ReLU. */
  function layered(x, layer) {
    const { side, values } = patches(x, layer);
    const channels = layer.scale.length;
    const inner = layer.kernel ** 2 * x.channels;
    let made = { side, channels, values: product(values, layer.weight, side * side, inner, channels) };
    if (layer.pool) made = pooled(made);
    for (let p = 0; p < made.values.length; p += channels) {
      for (let c = 0; c < channels; c++) {
        made.values[p + c] = Math.max(0, layer.scale[c] * made.values[p + c] + layer.shift[c]);
      }
    }
    return made;
  }

  /** weight (outputs, inputs) times x (inputs), plus bias. */
  function linear(weight, bias, x) {
    return bias.map((summand, o) => {
      let sum = summand;
      for (let i = 0; i < x.length; i++) sum += weight[o * x.length + i] * x[i];
      return sum;
    });
  }

  /** h and z of a view. */
  function features({ mean, std, blocks, head }, view) {
    const values = new Float32Array(3 * view[0].length);
    view.forEach((plane, c) => plane.forEach((value, p) => { values[3 * p + c] = (value - mean[c]) / std[c]; }));
    let x = { side: Math.sqrt(view[0].length), channels: 3, values };
    for (const { residual, layers } of blocks) {
      const before = x;
      for (const layer of layers) x = layered(x, layer);
      if (residual) x.values.forEach((value, i) => { x.values[i] = value + before.values[i]; });
    }
    const h = new Float32Array(x.channels), pixels = x.side ** 2;
    for (let i = 0; i < x.values.length; i++) h[i % x.channels] += x.values[i] / pixels;
    let z = h;
    head.forEach(({ weight, bias }, depth) => {
      if (depth) z = z.map((value) => Math.max(0, value));
      z = linear(weight, bias, z);
    });
    return { h, z };
  }

  function cosine(a, b) {
    let both = 0, one = 0, other = 0;
    for (let i = 0; i < a.length; i++) {
      both += a[i] * b[i];
      one += a[i] ** 2;
      other += b[i] ** 2;
    }
    return both / Math.sqrt(one * other);
  }

  function softmax(logits) {
    const highest = Math.max(...logits), shares = Array.from(logits, (logit) => Math.exp(logit - highest));
    const total = shares.reduce((sum, share) => sum + share);
    return shares.map((share) => share / total);
  }

  // ----------------------------------------------------------------------------------------------------- bring to size

  /** A picture as the browser decodes it, turned as its EXIF entry says, not changed by a colour profile. */
  async function bitmapOf(blob) {
    try {
      return await createImageBitmap(blob, { colorSpaceConversion: "none" });
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      return createImageBitmap(blob);  // an older browser, which knows other options
    }
  }

  const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

  /**
   * Lanczos weights as Pillow has them, in units of 2^-22: for count of the pixels that a side of length is brought to,
   * from the first on, where they begin and the weights from there on.
   */
  function lanczos(length, brought, first, count) {
    const scale = length / brought, stretch = Math.max(1, scale), support = 3 * stretch;
    return Array.from({ length: count }, (_, number) => {
      const centre = (first + number + 0.5) * scale;
      const start = Math.max(0, Math.floor(centre - support + 0.5));
      const end = Math.min(length, Math.floor(centre + support + 0.5));
      const weights = new Float64Array(end - start);
      for (let i = 0; i < weights.length; i++) {
        const x = (start + i - centre + 0.5) / stretch;
        weights[i] = x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0;
      }
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      const whole = Int32Array.from(weights, (weight) => {
        const units = (weight / total) * 2 ** 22;
        return units < 0 ? units - 0.5 : units + 0.5;
      });
      return { start, weights: whole };
    });
  }

  const HALF = 2 ** 21;
  const level = (sum) => Math.min(255, Math.max(0, sum >> 22));

  /** Half of a number of pixels, a half of one to the even side, as Python rounds. */
  function centred(pixels) {
    const half = Math.floor(pixels / 2);
    return pixels % 2 ? half + (half % 2) : half;
  }

  /** How a side is brought to size and cut: by the shorter one. */
  function axis(length, shorter, side) {
    const brought = length === shorter ? side : Math.floor((side * length) / shorter);
    return lanczos(length, brought, centred(brought - side), side);
  }

  /**
   * A bitmap's shorter side brought to so many pixels by Lanczos, on white, and its centre cut out.
   * Across first, then down, each rounded, as Pillow does it (13.0 begins with the height where a picture is more than
   * twice as high as wide). In strips, between which the page answers. Throws an error with a sentence for what is no
   * photograph.
   */
  async function square(bitmap, side) {
    const { width, height } = bitmap, shorter = Math.min(width, height);
    if (width * height > PIXELS || Math.max(width, height) > ELONGATED * shorter) {
      throw new Error(`${width} × ${height} pixels are too many (above ${PIXELS / 2 ** 20} million) or too long and narrow `
        + `(one side above ${ELONGATED} times the other)`);
    }
    const columns = axis(width, shorter, side), rows = axis(height, shorter, side);
    const first = rows[0].start, last = rows[side - 1].start + rows[side - 1].weights.length;
    const narrow = new Uint8ClampedArray((last - first) * side * 3);  // all rows, the columns that are wanted

    const tall = Math.max(1, Math.min(last - first, Math.floor(STRIP / width)));
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = tall;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white";
    for (let top = first; top < last; top += tall) {
      const count = Math.min(tall, last - top);
      context.fillRect(0, 0, width, tall);
      context.drawImage(bitmap, 0, -top);
      narrowed(context.getImageData(0, 0, width, count), columns, narrow, (top - first) * side * 3);
      await pause();
    }

    const pixels = new Uint8ClampedArray(4 * side * side).fill(255);
    rows.forEach(({ start, weights }, i) => {
      for (let place = 0; place < 3 * side; place++) {
        let sum = HALF;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * narrow[(start - first + k) * side * 3 + place];
        pixels[4 * (i * side + Math.floor(place / 3)) + place % 3] = level(sum);
      }
    });
    return { side, pixels };
  }

  /** Bring the rows of an image to the columns, into made from place on. */
  function narrowed({ width, height, data }, columns, made, place) {
    for (let row = 0; row < height; row++) {
      for (const { start, weights } of columns) {
        let red = HALF, green = HALF, blue = HALF, p = (row * width + start) * 4;
        for (let k = 0; k < weights.length; k++, p += 4) {
          red += weights[k] * data[p];
          green += weights[k] * data[p + 1];
          blue += weights[k] * data[p + 2];
        }
        made[place++] = level(red);
        made[place++] = level(green);
        made[place++] = level(blue);
      }
    }
  }

  /** The view that evaluation sees: the picture as it is. */
  const unchanged = ({ side, pixels }) =>
    [0, 1, 2].map((c) => Float32Array.from({ length: side * side }, (_, p) => pixels[4 * p + c] / 255));

  return { pause, bytes, singles, decoded, features, linear, cosine, softmax, unchanged, bitmapOf, square };
})();
