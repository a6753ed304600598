"use strict";
/* A reader's picture, and an encoder before its training and after: two random views, their h and z, how alike they are,
   and what a classifier on h calls the picture. */
Play.element("own-picture.js", (box) => {
  const { node } = Play;
  const written = Play.data.encoder, { side, recipe } = written, { pictures } = Play.data.photographs;
  const STAGES = ["untrained", "trained"], TILE = 320;  // pixels of a picture that is shown, at most
  const encoders = {};
  for (const stage of STAGES) encoders[stage] = Encoder.decoded(written.encoders[stage]);
  const { classes, n, correct } = written.classifier, classifier = {};
  for (const name of ["weight", "bias", "mean_h", "mean_z"]) {
    classifier[name] = Encoder.singles(written.classifier[name]);
  }

  let samples = [];   // pictures that come with the page
  let picture;        // the one looked at: { bitmap, small, words, credit }, small as the encoder gets it
  let other;          // one of the samples that it is not
  let draws = 3;      // the seed of the views; with the first one both keep their colours
  let kind = "z";     // of features that the cosines are read on
  let seen;           // features { h, z } by stage: of view 1, view 2, the other's view; trained also of the picture
  let latest = 0;     // what was asked for last; what comes later than a new question is thrown away

  const decimals = (value, digits) => Play.minus(value.toFixed(digits));
  const number = (value) => node("data", { value }, decimals(value, 3));
  const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)}\u00a0%`;

  // ----------------------------------------------------------------------------------------------------- what is shown

  /** A picture with words below it. */
  function tile(words) {
    const canvas = node("canvas", { role: "img" }), caption = node("p", { class: "aside" }, words);
    return { canvas, caption, whole: node("div", {}, node("div", { class: "tile" }, canvas), caption) };
  }

  /** A bitmap as a whole on a tile, for the eye alone. */
  function paintWhole({ canvas }, bitmap) {
    const scale = TILE / Math.max(bitmap.width, bitmap.height);
    canvas.width = Math.max(1, Math.round(scale * bitmap.width));
    canvas.height = Math.max(1, Math.round(scale * bitmap.height));
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingEnabled = scale < 1;
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  }

  /** What was drawn for a view, in words. */
  function said(drawn) {
    const [, , height, width] = Views.boxOf(drawn, side), { flip, jittered, grey, sigma } = drawn;
    const parts = [`${percent((height * width) / side ** 2)} of it`];
    if (flip) parts.push("mirrored");
    if (jittered) parts.push("colours changed");
    if (grey) parts.push("grey");
    if (sigma) parts.push("blurred");
    return parts.join(", ");
  }

  const whole = tile(""), small = tile(""), views = [tile(""), tile("")];
  const overlay = node("svg", { class: "frames", viewBox: `0 0 ${side} ${side}`, "aria-hidden": "true" });
  small.canvas.after(overlay);

  /** Numbers as bars around a line, or above it where none is negative. highest: that a full bar stands for. */
  function bars(values, highest, words) {
    const signed = values.some((value) => value < 0), zero = signed ? 16 : 32;
    const lines = Array.from(values, (value, i) => `M${i + 0.5} ${zero}v${(-(value / highest) * zero).toFixed(2)}`);
    const look = { viewBox: `0 0 ${values.length} 32`, preserveAspectRatio: "none", role: "img", "aria-label": words };
    return node("svg", look, node("path", { d: lines.join(""), stroke: "currentColor", "stroke-width": 0.8 }));
  }

  /** A cosine, from -1 to 1 around the middle, and its number. */
  function gauge(cosine) {
    const place = { x: Math.min(0, cosine), y: 0, width: Math.abs(cosine), height: 1 };
    const track = { x1: 0, x2: 0, y1: -0.4, y2: 1.4, stroke: "currentColor", "stroke-width": 0.02 };
    const look = { viewBox: "-1 -0.4 2 1.8", preserveAspectRatio: "none", "aria-hidden": "true" };
    return [number(cosine), node("svg", look,
      node("rect", { class: "track", x: -1, y: 0, width: 2, height: 1 }), node("rect", { class: "bar", ...place }),
      node("line", track))];
  }

  const cells = STAGES.map(() => ["one", "two", "both", "apart"].map(() => node("td")));
  const headers = ["", "", "", ""].map(() => node("th", { scope: "row" }));
  const cosines = node("table", { class: "cosines" },
    node("thead", {}, node("tr", {}, node("td"), ...STAGES.map((stage) => node("th", { scope: "col" }, stage)))),
    node("tbody", {}, ...headers.map((header, row) => node("tr", {}, header, ...cells.map((column) => column[row])))));

  const rows = classes.map((name) => {
    const bar = node("span", { class: "bar" }), share = node("span");
    const row = node("li", {}, node("span", {}, name), node("span", { "aria-hidden": "true" }, bar), share);
    return { bar, share, row };
  });
  const nearest = node("p"), summary = node("output", { class: "summary", "aria-live": "polite" });
  const trouble = node("p", { role: "alert", class: "trouble" });
  const credit = node("p", { class: "aside" });

  /** The cosines of a picture's trained features with the classes' mean directions, the nearest class first. */
  function alike(features) {
    const means = classifier[`mean_${kind}`], width = features[kind].length;
    const found = classes.map((name, c) => ({
      name, cosine: Encoder.cosine(features[kind], means.subarray(c * width, (c + 1) * width)),
    }));
    return found.sort((a, b) => b.cosine - a.cosine);
  }

  /** Everything that follows from the features. */
  function show() {
    const words = [`${kind} of view 1`, `${kind} of view 2`, "cosine of the two views",
      `cosine of view 1 and a view of the ${other.words}`];
    headers.forEach((header, row) => { header.textContent = words[row]; });
    const ofViews = {}, ofOther = {};
    STAGES.forEach((stage, column) => {
      const [one, two, apart] = seen[stage].map((features) => features[kind]);
      const highest = Math.max(...[...one, ...two].map(Math.abs)) || 1;
      [one, two].forEach((values, row) => {
        const [least, most] = [Math.min(...values), Math.max(...values)].map((value) => decimals(value, 2));
        const about = `${values.length} numbers between ${least} and ${most}`;
        cells[column][row].replaceChildren(bars(values, highest, about));
      });
      ofViews[stage] = Encoder.cosine(one, two);
      cells[column][2].replaceChildren(...gauge(ofViews[stage]));
      ofOther[stage] = Encoder.cosine(one, apart);
      cells[column][3].replaceChildren(...gauge(ofOther[stage]));
    });

    const features = seen.trained[3];
    const shares = Encoder.softmax(Encoder.linear(classifier.weight, classifier.bias, features.h));
    const best = shares.indexOf(Math.max(...shares));
    rows.forEach(({ bar, share, row }, c) => {
      bar.style.width = `${100 * shares[c]}%`;
      share.replaceChildren(node("data", { value: shares[c] }, percent(shares[c])));
      row.className = c === best ? "best" : "";
    });
    const near = alike(features).slice(0, 3)
      .flatMap(({ name, cosine }, k) => [k ? ", " : "", `${name} `, number(cosine)]);
    nearest.replaceChildren(`Nearest classes, by the cosine of its ${kind} with their means: `, ...near, ".");
    summary.value = `Cosine of the two views by ${kind}: ${decimals(ofViews.untrained, 2)} before training, `
      + `${decimals(ofViews.trained, 2)} after; with a view of the ${other.words} ${decimals(ofOther.untrained, 2)} and `
      + `${decimals(ofOther.trained, 2)}. The classifier says: ${classes[best]}, ${percent(shares[best])}.`;
  }

  // ----------------------------------------------------------------------------------------------------- what is asked

  /** Draw views of the picture and look at them, one a time: between two the page answers. */
  async function look() {
    const now = ++latest, drawn = [0, 1, 2].map((view) => Views.draw(recipe, draws, view));
    const made = drawn.map((one, k) => Views.view(k < 2 ? picture.small : other.small, recipe, one, side));
    views.forEach((shown, v) => {
      Views.paintView(shown.canvas, made[v]);
      shown.caption.textContent = `view ${v + 1}: ${said(drawn[v])}`;
      shown.canvas.setAttribute("aria-label", shown.caption.textContent);
    });
    overlay.replaceChildren(...drawn.slice(0, 2).flatMap((one, v) => Views.frame(Views.boxOf(one, side), side, v + 1)));

    box.setAttribute("aria-busy", "true");
    const found = { untrained: [], trained: [] };
    for (const stage of STAGES) {
      for (const view of stage === "trained" ? [...made, Encoder.unchanged(picture.small)] : made) {
        await Encoder.pause();
        if (now !== latest) return;
        found[stage].push(Encoder.features(encoders[stage], view));
      }
    }
    seen = found;
    show();
    box.setAttribute("aria-busy", "false");
  }

  /** Take a picture that is there. */
  function take(chosen) {
    picture = chosen;
    other = samples.find((sample) => sample !== picture);
    trouble.textContent = "";
    credit.textContent = picture.credit;
    paintWhole(whole, picture.bitmap);
    Views.paint(small.canvas, picture.small);
    whole.caption.textContent = picture.words;
    small.caption.textContent =
      `its centre at ${side} × ${side} pixels, as the encoder gets it, and where views 1 and 2 are cut out`;
    whole.canvas.setAttribute("aria-label", picture.words);
    small.canvas.setAttribute("aria-label", `${picture.words} at ${side} × ${side} pixels`);
    return look();
  }

  async function brought(bitmap, words, credit) {
    return { bitmap, words, credit, small: await Encoder.square(bitmap, side) };
  }

  /** Take the picture in a file of the reader's; say so where it is none. */
  async function open(file) {
    const now = ++latest;
    box.setAttribute("aria-busy", "true");
    try {
      await prepared;
      const chosen = await brought(await Encoder.bitmapOf(file), "your picture", "");
      if (now !== latest) return;
      for (const input of choices.querySelectorAll("input")) input.checked = false;
      await take(chosen);
    } catch (error) {
      if (now !== latest) return;
      const why = error instanceof DOMException ? "the browser can't read it as a picture" : error.message;
      trouble.textContent = `${file.name} is not shown: ${why}.`;
      input.value = "";  // it is not what is looked at
      if (picture) await look();  // what the question may have come amid
    }
  }

  const input = node("input", { type: "file", accept: "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/avif", change() {
    if (input.files[0]) open(input.files[0]);
  } });
  const names = Object.keys(pictures);
  const choices = Play.choice("Picture", Object.fromEntries(names.map((name) => [name, name])), names[0], (name) => {
    input.value = "";
    prepared.then(() => take(samples.find((sample) => sample.words === name)));
  });
  const again = Play.button("Draw two new views", () => { draws++; look(); });
  const reading = Play.choice("Cosines of", { z: "z, behind the head", h: "h, before it" }, kind, (value) => {
    kind = value;
    if (seen) show();
  });

  const holdsFiles = (event) => event.dataTransfer && event.dataTransfer.types.includes("Files");
  box.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    box.classList.add("dropping");
  });
  box.addEventListener("dragleave", (event) => {
    if (!box.contains(event.relatedTarget)) box.classList.remove("dropping");
  });
  box.addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    box.classList.remove("dropping");
    if (!event.dataTransfer.files.length) return;
    input.files = event.dataTransfer.files;
    open(event.dataTransfer.files[0]);
  });

  box.classList.add("own-picture");
  box.append(
    choices,
    node("label", { class: "file" }, node("span", {}, "or your own, chosen or dropped here"), input),
    node("p", { class: "aside" },
      "Your picture stays with you: this page computes everything itself and sends nothing."),
    trouble,
    node("div", { class: "tiles" }, ...[whole, small, ...views].map((shown) => shown.whole)),
    credit, again, reading, summary, cosines,
    node("p", {}, "What the classifier on h calls the picture as a whole. It knows these ten classes, so the name of anything else is wrong:"),
    node("ul", { class: "classes" }, ...rows.map(({ row }) => row)),
    nearest,
    node("p", { class: "aside" }, `Trained: ${written.about}, a narrow ResNet-9. Untrained: the same network as it was `
      + `before. Both see ${side} × ${side} pixels. The classifier, a linear probe on the trained h, is right in `
      + `${percent(correct / n, 1)} of ${written.data}'s ${n.toLocaleString("en")} test images; it knows `
      + `${classes.length} classes, and calls whatever it sees one of them. The nearest classes may be others: a classifier `
      + "weighs the numbers, a cosine takes all alike."),
  );

  const prepared = Promise.all(Object.entries(pictures).map(async ([name, { source, credit: whose }]) =>
    brought(await Views.read(source), name, whose))).then((made) => { samples = made; });
  prepared.then(() => { if (!latest) return take(samples[0]); })
    .catch((error) => { trouble.textContent = `This browser can't read pictures: ${error.message}`; });
});
