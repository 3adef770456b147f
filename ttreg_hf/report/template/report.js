"use strict";
// The neuron switch: shows the maps of one photograph in one state of the model. All data is in the page.
// The address keeps what is shown: #photo=0&show=moved&moved=3 (a number of neurons).
(() => {
  const data = JSON.parse(document.getElementById("switch-data").textContent);
  const form = document.getElementById("switch");
  const {photo, show, moved} = form.elements; // `show` and `moved` are missing where only the base model was run
  const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const colours = Object.fromEntries(Object.entries(data.scales).map(([name, scale]) => [name, bytes(scale.colours)]));

  /** Levels 0 to 255, row by row, in the colours of a map. */
  function draw(id, name, height, width, levels) {
    const canvas = document.getElementById(id);
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(width, height);
    levels.forEach((level, place) => {
      picture.data.set(colours[name].subarray(3 * level, 3 * level + 3), 4 * place);
      picture.data[4 * place + 3] = 255;
    });
    context.putImageData(picture, 0, 0);
  }

  function stateShown() {
    if (!show || show.value === "base") return 0;
    const count = data.counts[moved.value];
    if (show.value !== "moved") return data.states.findIndex((state) => state.kind === show.value);
    return count === 0 ? 0 : data.states.findIndex((state) => state.kind === "moved" && state.neurons === count);
  }

  function wordsFor(state) {
    const neurons = `${state.neurons} ${state.neurons === 1 ? "neuron" : "neurons"}`;
    return {
      base: "The base model.",
      zeroed: `Control: the same ${neurons} zeroed on the patches, not moved.`,
      random: `Control: ${neurons} of the same layers, drawn at random, moved to the register.`,
      moved: `${neurons} moved to the register, strongest first.`,
    }[state.kind];
  }

  function update() {
    const photograph = data.photographs[photo.length ? photo.value : 0];
    const place = stateShown();
    const [height, width] = photograph.grid;
    const shown = photograph.states[place];
    for (const name of ["norms", "attention"]) draw(name, name, height, width, bytes(shown[name]));
    for (const name of ["outliers", "largest_norm", "on_outliers", "largest_attention", "on_register"])
      document.getElementById(name).textContent = shown[name];
    document.getElementById("words").textContent = wordsFor(data.states[place]);
    document.getElementById("photograph").src = photograph.jpeg;
    if (moved) {
      const count = data.counts[moved.value];
      document.getElementById("count").textContent = count;
      moved.setAttribute("aria-valuetext", `${count} of ${data.counts.at(-1)} neurons`);
    }
  }

  function readAddress() {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (photo.length && asked.get("photo") in data.photographs) photo.value = asked.get("photo");
    if (show) {
      if (["base", "zeroed", "random", "moved"].includes(asked.get("show"))) show.value = asked.get("show");
      const place = data.counts.indexOf(Number(asked.get("moved") ?? NaN));
      if (place >= 0) moved.value = place;
    }
    update();
  }

  form.addEventListener("input", (event) => {
    if (event.target === moved) show.value = "moved"; // who moves the slider wants to see it
    const address = new URLSearchParams({photo: photo.length ? photo.value : 0});
    if (show) {
      address.set("show", show.value);
      address.set("moved", data.counts[moved.value]);
    }
    history.replaceState(null, "", `#${address}`);
    update();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", readAddress);
  for (const name of ["norms", "attention"]) draw(`${name}-bar`, name, 1, 256, Uint8Array.from({length: 256}, (_, level) => level));
  readAddress();
})();
