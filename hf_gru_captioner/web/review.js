// Many photos: uploads them, and shows their captions for review, which needs no requests. Requests are `props.value`,
// as a JSON string, and an event: `upload` captions {photos}, `submit` saves {save, rows}, `stop` stops captioning. The
// server responds with {rows, total, weights, left_out, is_done}. Runs after parts.js and the constants of tabs.py:
// ENDINGS of the files that the server reads, and MAX_PHOTOS, how many it captions at once.

const PARALLEL_UPLOADS = 4;
const MAX_NAMED = 5; // files left out for the same reason
const HIDDEN = /(^|\/)(\.|__MACOSX\/|Thumbs\.db$)/;
const NOT_A_PHOTO = "This is neither a picture nor a ZIP archive, by the ending of its name.";

let rows = []; // {name, captions, sure, caption, isChecked, card}
let leftOut = []; // {name, why}
let phase = ""; // "", "sending", "captioning", "done"
let counts = [0, 0]; // number sent or captioned, and total, 0 if unknown

const isChanged = (row) => row.caption !== row.captions[0];
const isRight = (row) => row.isChecked || isChanged(row);
const othersOf = (row) => row.captions.filter((caption) => caption !== row.caption);

function start(photos) {
  rows = [];
  leftOut = [];
  part("grid").replaceChildren();
  part("training").hidden = true;
  refuse("");
  const wanted = chooseAmong(withoutSharedFolder(photos.filter(({ name }) => !HIDDEN.test(name))));
  if (wanted.length) return send(wanted);
  refuse(leftOut.length ? ["No photos among these files.", ...linesOf(leftOut)].join(" ") : "No photos in this folder.");
  setPhase("", 0, 0);
}

// Captions belong into the folder that all photos are in, so its name is no part of theirs.
function withoutSharedFolder(photos) {
  const inside = photos.filter(isReadable), top = (inside[0] ?? photos[0])?.name.match(/^[^/]+\//)?.[0];
  if (!top || !inside.every(({ name }) => name.startsWith(top))) return photos;
  return photos.map((photo) => ({ ...photo, name: photo.name.startsWith(top) ? photo.name.slice(top.length) : photo.name }));
}

// What the server would reject is not sent: it counts toward what a visitor may send.
function chooseAmong(photos) {
  const byName = (one, other) => one.name.localeCompare(other.name, undefined, { numeric: true });
  const sorted = [...photos].sort(byName), readable = sorted.filter(isReadable), beyond = readable.splice(MAX_PHOTOS);
  leftOut.push(...sorted.filter((photo) => !isReadable(photo)).map(({ name }) => ({ name, why: NOT_A_PHOTO })));
  leftOut.push(...beyond.map(({ name }) => ({ name, why: `Only ${MAX_PHOTOS} photos are captioned at once.` })));
  if (beyond.length) {
    refuse(`Only ${MAX_PHOTOS} photos are captioned at once: the first by name, to ${readable.at(-1).name}. ` +
      `Choose the other ${beyond.length} next.`);
  }
  return readable;
}

// The server also reads pictures of other endings that the browser knows.
function isReadable({ file, name }) {
  return file.type.startsWith("image/") || ENDINGS.includes(name.match(/\.[^./]*$/)?.[0].toLowerCase());
}

function linesOf(files) {
  const byReason = new Map(files.map(({ why }) => [why, []]));
  for (const { name, why } of files) byReason.get(why).push(name);
  return [...byReason].flatMap(([why, names]) => {
    const more = names.splice(MAX_NAMED).length;
    return more ? `${names.join(", ")} and ${more} more: ${why}` : names.map((name) => `${name}: ${why}`);
  });
}

async function send(photos) {
  const waiting = [...photos], number = photos.length, sent = [];
  const places = new Map(photos.map((photo, place) => [photo, place]));
  let tried = 0;
  setPhase("sending", 0, number);
  const work = async () => {
    for (let photo; phase === "sending" && (photo = waiting.shift()); ) {
      try {
        const { path } = await upload(photo.file);
        if (!path) throw new Error("It couldn't be sent.");
        sent.push({ name: photo.name, path, place: places.get(photo) });
      } catch (error) {
        leftOut.push({ name: photo.name, why: error?.message || "It couldn't be sent." });
      }
      setPhase(phase, ++tried, number);
    }
  };
  await Promise.all(Array.from({ length: PARALLEL_UPLOADS }, work));
  if (phase !== "sending") return;
  if (!sent.length) return ended();
  sent.sort((one, other) => one.place - other.place);
  setPhase("captioning", 0, 0);
  props.value = JSON.stringify({ photos: sent.map(({ name, path }) => ({ name, path })) });
  trigger("upload");
}

function receive() {
  let response = null;
  try {
    response = JSON.parse(props.value || "null");
  } catch {
    return;
  }
  if (!response?.rows || phase !== "captioning") return;
  for (const row of response.rows.slice(rows.length)) {
    rows.push({ ...row, caption: row.captions[0] ?? "", isChecked: false });
    rows.at(-1).card = cardOf(rows.at(-1));
    part("grid").append(rows.at(-1).card);
  }
  leftOut.push(...(response.left_out ?? []));
  part("weights").textContent = response.weights;
  setPhase("captioning", rows.length, response.total ?? 0);
  if (response.is_done) ended();
}

function ended() {
  if (phase !== "sending" && phase !== "captioning") return;
  setPhase(rows.length || leftOut.length ? "done" : "", 0, 0);
  arrange();
}

function setPhase(now, done, of) {
  phase = now;
  counts = [done, of];
  showProgress();
}

function showProgress() {
  const [done, of] = counts, checked = rows.filter((row) => row.isChecked).length, isDone = phase === "done";
  const bar = part("bar");
  if (isDone || of) [bar.max, bar.value] = isDone ? [rows.length || 1, checked] : [of, done];
  else bar.removeAttribute("value");
  part("progress").textContent = {
    sending: `Sending ${done} of ${of}`,
    captioning: of ? `${done} of ${of} captioned` : `${done} captioned`,
    done: rows.length ? `${checked} of ${rows.length} accepted` : "No photo was captioned",
  }[phase] ?? "";
  part("choose").hidden = phase !== "";
  part("work").hidden = phase === "";
  part("stop").hidden = isDone;
  part("more").hidden = !isDone;
  part("left").hidden = !leftOut.length;
  part("left-count").textContent = leftOut.length === 1 ? "1 file left out" : `${leftOut.length} files left out`;
  if (isDone) part("left-list").replaceChildren(...linesOf(leftOut).map((line) => make("li", {}, line)));
}

function cardOf(row) {
  const card = make("li", { class: "card", tabindex: "-1" });
  const text = make("textarea", { rows: "2", "aria-label": `Caption of ${row.name}`, spellcheck: "true", lang: "en" });
  const alternatives = make("div", { class: "instead", role: "group", "aria-label": "Other captions" });
  // All but the current text have a button; once it is edited, that is all of them.
  row.captions.forEach((_, place) => {
    const button = make("button", { type: "button" });
    button.addEventListener("click", () => useCaption(row, place + 1));
    alternatives.append(button);
  });
  const accept = make("button", { type: "button", "data-part": "accept" });
  accept.addEventListener("click", () => setChecked(row, !row.isChecked));
  text.addEventListener("input", () => change(row, text.value, true));
  const name = make("span", { class: "name" }, row.name), sure = `${(100 * row.sure).toFixed(0)} % per word`;
  name.title = `Mean probability: ${sure}`;
  const footer = make("div", { class: "foot" });
  footer.append(name, accept);
  card.append(make("img", { src: row.photo, alt: row.name }), text, alternatives, footer);
  card.addEventListener("keydown", (event) => onKey(event, row));
  row.card = card;
  show(row);
  return card;
}

function show(row) {
  const text = row.card.querySelector("textarea"), accept = row.card.querySelector("[data-part=accept]");
  if (text.value !== row.caption) text.value = row.caption;
  row.card.dataset.checked = row.isChecked;
  accept.textContent = row.isChecked ? "Accepted ✓" : "Accept";
  accept.setAttribute("aria-pressed", String(row.isChecked));
  const others = othersOf(row);
  row.card.querySelectorAll(".instead button").forEach((button, place) => {
    button.textContent = others[place] ?? "";
    button.hidden = place >= others.length;
  });
}

function change(row, caption, isTyped = false) {
  row.caption = caption;
  row.isChecked = false;
  if (isTyped) row.card.dataset.checked = false;
  show(row);
  showProgress();
}

function useCaption(row, number) {
  const other = othersOf(row)[number - 1];
  if (other !== undefined) change(row, other);
}

function setChecked(row, isChecked) {
  row.isChecked = isChecked;
  show(row);
  showProgress();
}

function focusCard(row, step) {
  const shown = [...part("grid").querySelectorAll(".card:not([hidden])")];
  shown[shown.indexOf(row.card) + step]?.focus();
}

function onKey(event, row) {
  const isTyping = event.target.matches("textarea");
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  if (isTyping && !["Enter", "Escape"].includes(event.key)) return;
  if (event.target.matches("button") && ["Enter", " "].includes(event.key)) return;
  if (event.key === "Enter") {
    setChecked(row, true);
    focusCard(row, 1);
  } else if (event.key === "Escape") row.card.focus();
  else if (event.key === "ArrowDown" || event.key === "ArrowRight") focusCard(row, 1);
  else if (event.key === "ArrowUp" || event.key === "ArrowLeft") focusCard(row, -1);
  else if (event.key.toLowerCase() === "e") row.card.querySelector("textarea").focus();
  else if (/^[1-5]$/.test(event.key)) useCaption(row, Number(event.key));
  else return;
  event.preventDefault();
}

// Sorts the cards, and hides those that don't match the filters.
function arrange() {
  const order = part("order").value, which = part("which").value, words = part("filter").value.toLowerCase();
  const sorted = [...rows].sort((one, other) => (order === "sure" ? one.sure - other.sure : one.name.localeCompare(other.name)));
  for (const row of rows) {
    const isWanted = { all: true, open: !row.isChecked, checked: row.isChecked, changed: isChanged(row) }[which];
    row.card.hidden = !isWanted || !`${row.name} ${row.caption}`.toLowerCase().includes(words);
  }
  part("grid").append(...sorted.map((row) => row.card));
  part("nothing").hidden = !rows.length || rows.some((row) => !row.card.hidden);
  const first = sorted.find((row) => !row.card.hidden);
  for (const row of rows) row.card.tabIndex = row === first ? 0 : -1;
}

function refuse(why) {
  part("refusal").textContent = why;
  part("refusal").hidden = !why;
}

function save(kind) {
  const isTraining = kind === "corrections";
  if (isTraining && !rows.some(isRight)) return refuse("Accept or change some captions first: training uses only those.");
  refuse("");
  part("training").hidden = !isTraining;
  const saved = rows.map((row) => ({ name: row.name, caption: row.caption, is_checked: isRight(row) }));
  props.value = JSON.stringify({ save: kind, rows: saved });
  trigger("submit");
}

const photosOf = (files) => [...files].map((file) => ({ file, name: file.webkitRelativePath || file.name }));
for (const kind of ["files", "folder"]) {
  part(`choose-${kind}`).addEventListener("click", () => part(kind).click());
  part(kind).addEventListener("change", (event) => {
    const photos = photosOf(event.target.files);
    event.target.value = "";
    if (photos.length) start(photos);
  });
}
part("stop").addEventListener("click", () => {
  if (phase === "captioning") trigger("stop");
  ended();
});
part("more").addEventListener("click", () => {
  if (rows.some(isRight) && !confirm("Your review will be lost. Continue?")) return;
  rows = [];
  leftOut = [];
  setPhase("", 0, 0);
});
for (const name of ["which", "order"]) part(name).addEventListener("change", arrange);
part("filter").addEventListener("input", arrange);
element.querySelectorAll("[data-save]").forEach((button) => button.addEventListener("click", () => save(button.dataset.save)));
part("copy").addEventListener("click", (event) => copy(part("command").textContent, event.target));
const root = part("root");
root.addEventListener("photos", (event) => start(event.detail));
root.addEventListener("ended", ended);
window.addEventListener("beforeunload", (event) => rows.some(isRight) && event.preventDefault());
watch("value", receive);
