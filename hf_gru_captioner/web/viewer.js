// Shows the caption and where the model looked, without further requests. `props.value` is the server's response as
// JSON. Runs after parts.js.

const percent = (share) =>
  share < 0.0005 ? "< 0.1 %" : (share >= 0.995 ? "100" : (100 * share).toFixed(share < 0.1 ? 1 : 0)) + " %";

let answer = null; // the server's response
let caption = 0; // index of the shown caption
let word = null; // index of the selected word, or null
let pinned = null; // index of the clicked word, which stays selected when the pointer leaves
let playing = null; // timer of the slide show
let growing = null; // timer of the caption appearing word by word

const current = () => answer.captions[caption];

// Paints a word's attention map over the photo: a small alpha map, smoothed by the browser's scaling.
function paint(canvas, map, strength) {
  const rows = map.length, columns = map[0].length;
  const highest = Math.max(...map.flat());
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  const pixels = small.getContext("2d").createImageData(columns, rows);
  map.flat().forEach((weight, place) => {
    pixels.data[4 * place + 3] = Math.round(255 * strength * (1 - weight / highest)); // black: not looked at
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
  const canvas = part("attention"), alternatives = part("alternatives");
  element.querySelectorAll("[data-word]").forEach((button) => {
    button.setAttribute("aria-pressed", String(Number(button.dataset.word) === number));
  });
  alternatives.replaceChildren();
  if (number === null) {
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    alternatives.append(make("p", { class: "hint" }, hint()));
    return;
  }
  const { words, log_probabilities, attention, alternatives: candidates } = current();
  if (attention) paint(canvas, attention[number], Number(part("strength").value) / 100);
  const probability = percent(Math.exp(log_probabilities[number]));
  alternatives.append(make("p", {}, `“${words[number]}” has a probability of ${probability}. Alternatives:`));
  const list = make("ol");
  for (const [text, share] of candidates[number] ?? []) {
    const item = make("li", text === words[number] ? { class: "chosen" } : {});
    item.append(make("span", {}, text), make("span", { class: "bar", style: `--share: ${share}` }),
      make("span", { class: "share" }, percent(share)));
    list.append(item);
  }
  alternatives.append(list);
}

function hint() {
  if (!current().words.length) return "";
  return current().attention
    ? "Point at a word to see where the model looked, and which other words it considered."
    : "Point at a word to see which other words the model considered.";
}

function stop() {
  clearInterval(playing);
  playing = null;
  part("play").textContent = "Show word by word";
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
  const line = part("caption"), { words, log_probabilities } = current();
  line.replaceChildren();
  words.forEach((text, place) => {
    const button = make("button", { type: "button", "data-word": place, "aria-pressed": "false" }, text);
    button.title = percent(Math.exp(log_probabilities[place]));
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
  if (!words.length) line.append("The model generated no words for this photo.");
  const buttons = [...line.querySelectorAll("button")];
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
    buttons.forEach((button) => button.classList.add("unsaid"));
    let shown = 0;
    growing = setInterval(() => (shown < buttons.length ? buttons[shown++].classList.remove("unsaid") : clearInterval(growing)), 60);
  }
  part("photo").alt = current().caption;
  part("said").textContent = current().caption; // for screen readers, in one piece
  element.querySelectorAll("[data-caption]").forEach((button) => {
    button.setAttribute("aria-pressed", String(Number(button.dataset.caption) === number));
  });
  part("looking").hidden = !words.length || !current().attention;
  for (const name of ["copy-text", "copy-alt", "copy-json", "download"]) part(name).hidden = !words.length;
  showWord(null);
}

function show() {
  let response = null;
  try {
    response = JSON.parse(props.value || "null");
  } catch {
    // nothing is shown
  }
  part("refusal").textContent = response?.refused ?? "";
  part("refusal").hidden = !response?.refused;
  if (response?.keeps_caption && answer) return;
  stop();
  clearInterval(growing);
  answer = response?.captions?.length ? response : null;
  part("full").hidden = !answer;
  if (!answer) return;
  const photo = part("photo"), canvas = part("attention");
  photo.src = answer.photo;
  photo.parentElement.style.setProperty("--shape", answer.width / answer.height);
  canvas.width = answer.width;
  canvas.height = answer.height;
  part("title").textContent = answer.title ?? "";
  part("title").hidden = !answer.title;
  const others = part("others");
  others.replaceChildren();
  others.hidden = answer.captions.length < 2;
  answer.captions.forEach((each, place) => {
    const button = make("button", { type: "button", "data-caption": place, "aria-pressed": "false" });
    button.append(make("span", {}, each.caption), make("span", { class: "share" }, `${percent(each.mean_probability)} per word`));
    button.addEventListener("click", () => showCaption(place));
    others.append(button);
  });
  const { encoder_ms, decoder_ms, batch } = answer;
  part("times").textContent =
    `Captioned in ${(encoder_ms + decoder_ms).toFixed(0)} ms` + (batch > 1 ? `, together with ${batch - 1} others` : "");
  showCaption(0);
}

// The photo with the attention of each word, side by side, as a PNG.
function sheet() {
  const { words, attention } = current(), photo = part("photo");
  const width = 240, height = Math.round((width * answer.height) / answer.width), label = 30;
  const columns = Math.min(6, words.length + 1), rows = Math.ceil((words.length + 1) / columns);
  const canvas = make("canvas");
  canvas.width = columns * width;
  canvas.height = rows * (height + label);
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.font = "18px sans-serif";
  [null, ...words].forEach((text, place) => {
    const left = (place % columns) * width, top = Math.floor(place / columns) * (height + label);
    context.drawImage(photo, left, top + label, width, height);
    if (text === null) return;
    context.fillStyle = "black";
    context.fillText(text, left + 6, top + 21);
    if (!attention) return;
    const overlay = make("canvas");
    overlay.width = width;
    overlay.height = height;
    paint(overlay, attention[place - 1], 0.8);
    context.drawImage(overlay, left, top + label);
  });
  return canvas.toDataURL("image/png");
}

function escaped(text) {
  return text.replace(/[&<>"]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[sign]);
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-part]");
  if (!button || !answer) return;
  const what = button.dataset.part;
  if (what === "play") play();
  if (what === "copy-text") copy(current().caption, button);
  if (what === "copy-alt") copy(`<img src="" alt="${escaped(current().caption)}">`, button);
  if (what === "copy-json") {
    const captions = answer.captions.map(({ caption, score, words, log_probabilities }) => ({ caption, score, words, log_probabilities }));
    copy(JSON.stringify(captions, null, 2), button);
  }
  if (what === "download") {
    const link = make("a", { href: sheet(), download: "attention.png" });
    link.click();
  }
  if (what === "another") another();
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

// Shows the photo input again, in place of the photo.
function another() {
  const tab = element.closest(".photo-tab");
  props.value = "";
  show();
  tab.dispatchEvent(new CustomEvent("another"));
}

const root = part("root");
root.addEventListener("begun", () => root.setAttribute("aria-busy", "true"));
root.addEventListener("ended", () => root.removeAttribute("aria-busy"));
watch("value", show);
show();
