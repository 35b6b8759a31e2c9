// The caption and where the model looked, all of it in the page: nothing is asked of the server to look around.
// Runs as js_on_load of a gr.HTML: `element` is its root, `props.value` the answer of the server as JSON, `watch` calls
// back when it changes. Whatever came from outside is put in as text, never as HTML.

const part = (name) => element.querySelector(`[data-part="${name}"]`);
const make = (tag, attributes = {}, text = "") => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
};
const percent = (share) =>
  share < 0.0005 ? "< 0.1 %" : (share >= 0.995 ? "100" : (100 * share).toFixed(share < 0.1 ? 1 : 0)) + " %";

let answer = null; // what the server said
let caption = 0; // number of the caption that is shown
let word = null; // number of the word that is looked at, or null
let pinned = null; // the word that was clicked, which stays when the pointer leaves
let playing = null; // timer of the slide show
let growing = null; // timer of the words that appear one by one

function current() {
  return answer.captions[caption];
}

// The attention of a word over the photo: a small map, drawn as alpha and made smooth by the browser's own scaling.
function paint(canvas, map, strength) {
  const rows = map.length, columns = map[0].length;
  const highest = Math.max(...map.flat());
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  const pixels = small.getContext("2d").createImageData(columns, rows);
  map.flat().forEach((weight, place) => {
    pixels.data[4 * place + 3] = Math.round(255 * strength * (1 - weight / highest)); // black where nothing was looked at
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}

function showWord(number) {
  word = number;
  const canvas = part("attention"), shown = number === null ? null : current().words[number];
  element.querySelectorAll("[data-word]").forEach((button) => {
    button.setAttribute("aria-pressed", String(Number(button.dataset.word) === number));
  });
  const alternatives = part("alternatives");
  alternatives.replaceChildren();
  if (shown === null) {
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    alternatives.append(make("p", { class: "hint" }, "Point at a word, or press Play, to see where the model looked."));
    return;
  }
  if (shown.attention) paint(canvas, shown.attention, Number(part("strength").value) / 100);
  alternatives.append(make("p", {}, `“${shown.text}” has a probability of ${percent(shown.probability)}. In its place:`));
  const list = make("ol");
  for (const [text, probability] of shown.alternatives) {
    const item = make("li", text === shown.text ? { class: "chosen" } : {});
    item.append(make("span", {}, text), make("span", { class: "bar", style: `--share: ${probability}` }),
      make("span", { class: "share" }, percent(probability)));
    list.append(item);
  }
  alternatives.append(list);
}

function stop() {
  clearInterval(playing);
  playing = null;
  part("play").textContent = "Play";
}

function play() {
  if (playing) return stop();
  let next = 0;
  const step = () => {
    if (next >= current().words.length) {
      stop();
      return showWord(pinned);
    }
    showWord(next++);
  };
  part("play").textContent = "Stop";
  step();
  playing = setInterval(step, 700);
}

function showCaption(number) {
  stop();
  clearInterval(growing);
  caption = number;
  pinned = null;
  const line = part("caption");
  line.replaceChildren();
  current().words.forEach((each, place) => {
    const button = make("button", { type: "button", "data-word": place, "aria-pressed": "false" }, each.text);
    button.title = percent(each.probability);
    button.addEventListener("mouseenter", () => playing || showWord(place));
    button.addEventListener("focus", () => playing || showWord(place));
    button.addEventListener("mouseleave", () => playing || showWord(pinned));
    button.addEventListener("click", () => {
      stop();
      pinned = pinned === place ? null : place;
      showWord(pinned ?? place);
    });
    line.append(button, " ");
  });
  const buttons = [...line.querySelectorAll("button")];
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
    buttons.forEach((button) => button.classList.add("unsaid"));
    let said = 0;
    growing = setInterval(() => (said < buttons.length ? buttons[said++].classList.remove("unsaid") : clearInterval(growing)), 60);
  }
  part("said").textContent = current().text; // for screen readers, in one piece
  element.querySelectorAll("[data-caption]").forEach((button) => {
    button.setAttribute("aria-pressed", String(Number(button.dataset.caption) === number));
  });
  showWord(null);
}

function show() {
  stop();
  clearInterval(growing);
  try {
    answer = JSON.parse(props.value || "null");
  } catch {
    answer = null;
  }
  const has = Boolean(answer && answer.captions.length);
  part("empty").hidden = has;
  part("full").hidden = !has;
  if (!has) return;
  const photo = part("photo"), canvas = part("attention");
  photo.src = answer.photo;
  photo.alt = answer.captions[0].text;
  canvas.width = answer.width;
  canvas.height = answer.height;
  const others = part("others");
  others.replaceChildren();
  others.hidden = answer.captions.length < 2;
  answer.captions.forEach((each, place) => {
    const button = make("button", { type: "button", "data-caption": place, "aria-pressed": "false" });
    button.append(make("span", {}, each.text), make("span", { class: "share" }, percent(each.probability)));
    button.addEventListener("click", () => showCaption(place));
    others.append(button);
  });
  const { encoder_ms, decoder_ms, batch } = answer;
  part("times").textContent =
    `Encoder ${encoder_ms.toFixed(0)} ms, decoder ${decoder_ms.toFixed(0)} ms` + (batch > 1 ? `, shared by ${batch} photos` : "");
  part("looking").hidden = !current_has_attention();
  showCaption(0);
}

function current_has_attention() {
  return Boolean(answer.captions[0].words[0]?.attention);
}

// A sheet of the photo once a word, as a PNG.
function sheet() {
  const words = current().words, photo = part("photo");
  const width = 240, height = Math.round((width * answer.height) / answer.width), label = 30;
  const columns = Math.min(6, words.length + 1), rows = Math.ceil((words.length + 1) / columns);
  const canvas = make("canvas");
  canvas.width = columns * width;
  canvas.height = rows * (height + label);
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.font = "18px sans-serif";
  [null, ...words].forEach((each, place) => {
    const left = (place % columns) * width, top = Math.floor(place / columns) * (height + label);
    context.drawImage(photo, left, top + label, width, height);
    if (!each) return;
    context.fillStyle = "black";
    context.fillText(each.text, left + 6, top + 21);
    if (!each.attention) return;
    const lit = make("canvas");
    lit.width = width;
    lit.height = height;
    paint(lit, each.attention, 0.8);
    context.drawImage(lit, left, top + label);
  });
  return canvas.toDataURL("image/png");
}

function escaped(text) {
  return text.replace(/[&<>"]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[sign]);
}

async function copy(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Can't copy here";
  }
  setTimeout(() => (button.textContent = label), 1200);
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-part]");
  if (!button || !answer) return;
  const what = button.dataset.part;
  if (what === "play") play();
  if (what === "copy-text") copy(current().text, button);
  if (what === "copy-alt") copy(`<img src="" alt="${escaped(current().text)}">`, button);
  if (what === "copy-json") {
    const captions = answer.captions.map(({ text, score, probability }) => ({ text, score, probability }));
    copy(JSON.stringify(captions, null, 2), button);
  }
  if (what === "download") {
    const link = make("a", { href: sheet(), download: "attention.png" });
    link.click();
  }
});
element.addEventListener("input", (event) => {
  if (event.target.dataset.part === "strength" && answer && word !== null) showWord(word);
});
element.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const from = event.target.closest("[data-word]");
  if (!step || !from) return;
  const next = element.querySelector(`[data-word="${Number(from.dataset.word) + step}"]`);
  if (next) next.focus();
  event.preventDefault();
});

watch("value", show);
show();
