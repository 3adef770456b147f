"use strict";
// The neuron switch: shows the maps of one photograph in one state of the model. All data is in the page.
// The address keeps what is shown: #photo=0&show=moved&moved=3 (a number of neurons), and a page that has them
// &norms=4&attention=11&patch=17 (which map of several, and the patch that others are compared with).
// Elements say what they show: data-map and data-note what, data-state which state: "shown", "base" or "moved" (all).
(() => {
  const data = JSON.parse(document.getElementById("switch-data").textContent);
  const form = document.getElementById("switch");
  const {photo, show, moved} = form.elements; // `show` and `moved` are missing where only the base model was run
  const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const colours = {similarity: bytes(data.cosines)};
  for (const [name, map] of Object.entries(data.maps)) colours[name] = bytes(map.colours);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const lastState = data.states.length - 1;
  let patch = null; // of the photograph that is shown: row by row; the one with the largest norm until another is chosen

  const photograph = () => data.photographs[photo.length ? photo.value : 0];
  const markedPatch = () => patch ?? photograph().patch;
  /** Which map of several: as chosen for those below the switch, as at first for the others. */
  const choice = (name, isShown = true) => Number((isShown && form.elements[name]?.value) || data.maps[name].shown);

  function draw(canvas, height, width, colourOf) {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(width, height);
    for (let place = 0; place < height * width; place++) {
      picture.data.set(colourOf(place), 4 * place);
      picture.data[4 * place + 3] = 255;
    }
    context.putImageData(picture, 0, 0);
  }

  const inColours = (name, levels) => (place) => colours[name].subarray(3 * levels[place], 3 * levels[place] + 3);

  /** Cosine of the marked patch's feature to all others', from -1 to 1, as levels 0 to 255. */
  function similarities(directions, patches) {
    const all = new Int8Array(bytes(directions).buffer);
    const size = all.length / patches;
    const own = all.subarray(markedPatch() * size, (markedPatch() + 1) * size);
    return Uint8Array.from({length: patches}, (_, other) => {
      const cosine = own.reduce((sum, value, place) => sum + value * all[other * size + place], 0) / 127 ** 2;
      return Math.round(127.5 * (1 + Math.max(-1, Math.min(1, cosine))));
    });
  }

  function drawMap(canvas) {
    const {grid: [height, width], states} = photograph();
    const {map: name} = canvas.dataset;
    const state = states[stateOf(canvas)];
    if (name === "colours") {
      const picture = bytes(state.colours);
      draw(canvas, height, width, (place) => picture.subarray(3 * place, 3 * place + 3));
    } else if (name === "similarity") {
      draw(canvas, height, width, inColours(name, similarities(state.directions, height * width)));
    } else {
      const levels = bytes(state[name][choice(name, canvas.dataset.state === "shown")]);
      draw(canvas, height, width, inColours(name, levels));
    }
  }

  /** The lines of a chart of norms over blocks: the largest and the median, of the base model and of one state. */
  function drawChart(svg) {
    const {states} = photograph();
    const values = states.flatMap(({median, largest}) => [...median, ...largest]).filter((value) => value > 0);
    const [low, high] = [Math.log(Math.min(...values)), Math.log(Math.max(...values))];
    for (const line of svg.querySelectorAll("polyline")) {
      const norms = states[stateOf(line)][line.dataset.line];
      const heightOf = (norm) => 95 - 90 * (Math.log(Math.max(norm, Math.exp(low))) - low) / (high - low || 1);
      const points = norms.map((norm, block) => `${blockAt(block, norms.length)},${heightOf(norm).toFixed(2)}`);
      line.setAttribute("points", points.join(" "));
    }
    const shown = svg.querySelector(".shown");
    shown?.setAttribute("transform", `translate(${blockAt(choice("norms"), data.maps.norms.choices.length)} 0)`);
    const [bottom, top] = [low, high].map((end) => Number(Math.exp(end).toPrecision(3)));
    const chart = svg.closest(".chart");
    chart.querySelector(".low").textContent = bottom;
    chart.querySelector(".high").textContent = top;
  }

  const blockAt = (block, count) => (100 * (block + 0.5) / count).toFixed(2);

  function stateShown() {
    if (!show || show.value === "base") return 0;
    const count = data.counts[moved.value];
    if (show.value !== "moved") return data.states.findIndex((state) => state.kind === show.value);
    return Number(moved.value) === 0 ? 0 : data.states.findIndex((state) => state.kind === "moved" && state.neurons === count);
  }

  function stateOf(element) {
    return {base: 0, moved: lastState, shown: stateShown()}[element.dataset.state];
  }

  function wordsFor(state) {
    const counted = (number, noun) => (number ? [`${number} ${noun}${number === 1 ? "" : "s"}`] : []);
    const neurons = counted(state.neurons, "neuron");
    const rows = (what) => counted(data.spikes, what).map((rows) => `${rows} of the position table`);
    const same = [...neurons, ...rows("spike")].join(" and ");
    const others = [...neurons.map((some) => `${some} of the same layers`), ...rows("other row")].join(" and ");
    return {
      base: "The base model.",
      zeroed: `Control: the same ${same} zeroed on the patches, not moved.`,
      random: `Control: ${others}, drawn at random, moved to the register.`,
      constant: `Constant mode: the same ${same} zeroed on the patches; no token, but one more row in each attention, the same for every image.`,
      moved: `${same} moved to the register${state.neurons ? ", strongest first" : ""}.`,
    }[state.kind];
  }

  function writeNote(element) {
    const {note: name, state} = element.dataset;
    const note = photograph().states[stateOf(element)].notes[name];
    const map = name === "largest_norm" ? "norms" : "attention";
    element.textContent = Array.isArray(note) ? note[choice(map, state === "shown")] : note;
  }

  function describeScale(name) {
    const chosen = data.maps[name].choices[choice(name)];
    const end = (part) => document.getElementById(`${name}-${part}`);
    end("low").textContent = chosen.low;
    end("high").textContent = chosen.high + (name === "attention" ? " %" : "");
    if (name !== "norms") return;
    const marked = chosen.mark !== undefined;
    end("mark").hidden = !marked;
    end("mark").style.left = `${100 * (chosen.mark ?? 0)}%`;
    end("threshold").textContent = marked ? `threshold ${chosen.threshold}` : "";
  }

  function update() {
    const state = stateShown();
    const [height, width] = photograph().grid;
    all("canvas[data-map]").forEach(drawMap);
    all("svg[data-chart]").forEach(drawChart);
    all("[data-note]").forEach(writeNote);
    Object.keys(data.maps).forEach(describeScale);
    all("img[data-photograph]").forEach((image) => (image.src = photograph().jpeg));
    document.getElementById("words").textContent = wordsFor(data.states[state]);
    for (const mark of all(".patch")) {
      mark.style.left = `${100 * (markedPatch() % width) / width}%`;
      mark.style.top = `${100 * Math.floor(markedPatch() / width) / height}%`;
      mark.style.width = `${100 / width}%`;
      mark.style.height = `${100 / height}%`;
    }
    if (moved) {
      const count = data.counts[moved.value];
      document.getElementById("count").textContent = count;
      moved.setAttribute("aria-valuetext", `${count} of ${data.counts.at(-1)} neurons`);
    }
  }

  function markPatch(row, column) {
    const [height, width] = photograph().grid;
    const within = (place, size) => Math.max(0, Math.min(size - 1, place));
    patch = within(row, height) * width + within(column, width);
    writeAddress();
    update();
  }

  function writeAddress() {
    if (location.protocol === "about:") return; // inside a notebook: there is none
    const address = new URLSearchParams({photo: photo.length ? photo.value : 0});
    if (show) {
      address.set("show", show.value);
      address.set("moved", data.counts[moved.value]);
    }
    for (const name of Object.keys(data.maps)) if (form.elements[name]) address.set(name, choice(name));
    if (patch !== null) address.set("patch", patch);
    history.replaceState(null, "", `#${address}`);
  }

  function readAddress() {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (photo.length && asked.get("photo") in data.photographs) photo.value = asked.get("photo");
    if (show) {
      if ([...show].some((button) => button.value === asked.get("show"))) show.value = asked.get("show");
      const place = data.counts.lastIndexOf(Number(asked.get("moved") ?? NaN));
      if (place >= 0) moved.value = place;
    }
    for (const [name, map] of Object.entries(data.maps))
      if (form.elements[name] && asked.get(name) in map.choices) form.elements[name].value = asked.get(name);
    const [height, width] = photograph().grid;
    const place = Number(asked.get("patch") ?? NaN);
    patch = Number.isInteger(place) && place >= 0 && place < height * width ? place : null;
    update();
  }

  form.addEventListener("input", (event) => {
    if (event.target === moved) show.value = "moved"; // who moves the slider wants to see it
    if (event.target.name === "photo") patch = null; // patches of another photograph are other places
    writeAddress();
    update();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const frame of all("form .frame").filter((each) => each.querySelector(".patch"))) {
    frame.addEventListener("click", (event) => {
      const box = frame.getBoundingClientRect();
      const [height, width] = photograph().grid;
      const row = Math.floor((height * (event.clientY - box.top)) / box.height);
      markPatch(row, Math.floor((width * (event.clientX - box.left)) / box.width));
    });
    frame.addEventListener("keydown", (event) => {
      const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
      if (!step) return;
      event.preventDefault();
      const [, width] = photograph().grid;
      markPatch(Math.floor(markedPatch() / width) + step[0], (markedPatch() % width) + step[1]);
    });
  }
  // The address is for what is shown; and in a frame that has none, such a link would load the page around it.
  for (const link of all('a[href^="#"]')) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      document.getElementById(link.hash.slice(1)).scrollIntoView();
    });
  }
  addEventListener("hashchange", readAddress);
  for (const bar of all("canvas[data-bar]")) draw(bar, 1, 256, inColours(bar.dataset.bar, Array.from({length: 256}, (_, level) => level)));
  readAddress();
})();
