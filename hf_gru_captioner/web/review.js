// Many photos: sends them, and shows their captions to be read, changed and accepted. Nothing is asked of the server to
// review. The server is asked by `props.value`, JSON as text, and an event: `upload` captions {photos}, `submit` saves
// {save, rows}, `stop` ends the captioning. It answers {rows, total, weights, left_out, is_done}. Runs behind parts.js.

const SENT_TOGETHER = 4; // files

let rows = []; // {name, captions, sure, caption, isChecked, card}
let leftOut = []; // {name, why}
let phase = ""; // "", "sending", "captioning", "done"
let counts = [0, 0]; // sent or captioned, of how many; 0: not known

const isChanged = (row) => row.caption !== row.captions[0];
const isRight = (row) => row.isChecked || isChanged(row);

function start(photos) {
  rows = [];
  leftOut = [];
  part("grid").replaceChildren();
  part("training").hidden = true;
  refuse("");
  send(photos);
}

async function send(photos) {
  const waiting = photos.filter(({ name }) => !/(^|\/)(\.|__MACOSX\/|Thumbs\.db$)/.test(name)), sent = [];
  const number = waiting.length;
  const places = new Map(waiting.map((photo, place) => [photo, place]));
  tell("sending", 0, number);
  const work = async () => {
    for (let photo; phase === "sending" && (photo = waiting.shift()); ) {
      try {
        const { path } = await upload(photo.file);
        if (!path) throw new Error("It could not be sent.");
        sent.push({ name: photo.name, path, place: places.get(photo) });
      } catch (error) {
        leftOut.push({ name: photo.name, why: error?.message || "It could not be sent." });
      }
      tell(phase, sent.length + leftOut.length, number);
    }
  };
  await Promise.all(Array.from({ length: SENT_TOGETHER }, work));
  if (phase !== "sending") return;
  if (!sent.length) return ended();
  sent.sort((one, other) => one.place - other.place);
  tell("captioning", 0, 0);
  props.value = JSON.stringify({ photos: sent.map(({ name, path }) => ({ name, path })) });
  trigger("upload");
}

function receive() {
  let said = null;
  try {
    said = JSON.parse(props.value || "null");
  } catch {
    return;
  }
  if (!said?.rows || phase !== "captioning") return;
  for (const row of said.rows.slice(rows.length)) {
    rows.push({ ...row, caption: row.captions[0] ?? "", isChecked: false });
    rows.at(-1).card = cardOf(rows.at(-1));
    part("grid").append(rows.at(-1).card);
  }
  leftOut.push(...(said.left_out ?? []));
  part("weights").textContent = said.weights;
  tell("captioning", rows.length, said.total ?? 0);
  if (said.is_done) ended();
}

function ended() {
  if (phase !== "sending" && phase !== "captioning") return;
  tell("done", 0, 0);
  if (!rows.length && !leftOut.length) phase = "";
  arrange();
}

function tell(now, done, of) {
  phase = now;
  counts = [done, of];
  progress();
}

function progress() {
  const [done, of] = counts, checked = rows.filter((row) => row.isChecked).length, isDone = phase === "done";
  const bar = part("bar");
  if (isDone || of) [bar.max, bar.value] = isDone ? [rows.length || 1, checked] : [of, done];
  else bar.removeAttribute("value");
  part("progress").textContent = {
    sending: `Sending ${done} of ${of}`,
    captioning: of ? `${done} of ${of} captioned` : `${done} captioned`,
    done: `${checked} of ${rows.length} accepted`,
  }[phase] ?? "";
  part("choose").hidden = phase !== "";
  part("work").hidden = phase === "";
  part("stop").hidden = isDone;
  part("more").hidden = !isDone;
  part("left").hidden = !leftOut.length;
  part("left-count").textContent = leftOut.length === 1 ? "1 file left out" : `${leftOut.length} files left out`;
  if (isDone) part("left-list").replaceChildren(...leftOut.map(({ name, why }) => make("li", {}, `${name}: ${why}`)));
}

function cardOf(row) {
  const card = make("li", { class: "card", tabindex: "-1" });
  const text = make("textarea", { rows: "2", "aria-label": `Caption of ${row.name}`, spellcheck: "true", lang: "en" });
  const instead = make("div", { class: "instead", role: "group", "aria-label": "Other captions" });
  row.captions.slice(1).forEach((caption, place) => {
    const button = make("button", { type: "button" }, caption);
    button.addEventListener("click", () => take(row, place + 1));
    instead.append(button);
  });
  const accept = make("button", { type: "button", "data-part": "accept" });
  accept.addEventListener("click", () => check(row, !row.isChecked));
  text.addEventListener("input", () => change(row, text.value, true));
  const name = make("span", { class: "name" }, row.name), sure = `${(100 * row.sure).toFixed(0)} % a word`;
  name.title = `Mean probability: ${sure}`;
  const foot = make("div", { class: "foot" });
  foot.append(name, accept);
  card.append(make("img", { src: row.photo, alt: row.name }), text, instead, foot);
  card.addEventListener("keydown", (event) => key(event, row));
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
  // A button holds the caption that the text would be exchanged for.
  const others = row.captions.filter((caption) => caption !== row.caption);
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
  progress();
}

function take(row, number) {
  const others = row.captions.filter((caption) => caption !== row.caption);
  if (others[number - 1] !== undefined) change(row, others[number - 1]);
}

function check(row, isChecked) {
  row.isChecked = isChecked;
  show(row);
  progress();
}

function go(row, step) {
  const shown = [...part("grid").querySelectorAll(".card:not([hidden])")];
  shown[shown.indexOf(row.card) + step]?.focus();
}

function key(event, row) {
  const isTyping = event.target.matches("textarea");
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  if (isTyping && !["Enter", "Escape"].includes(event.key)) return;
  if (event.target.matches("button") && ["Enter", " "].includes(event.key)) return;
  if (event.key === "Enter") {
    check(row, true);
    go(row, 1);
  } else if (event.key === "Escape") row.card.focus();
  else if (event.key === "ArrowDown" || event.key === "ArrowRight") go(row, 1);
  else if (event.key === "ArrowUp" || event.key === "ArrowLeft") go(row, -1);
  else if (event.key.toLowerCase() === "e") row.card.querySelector("textarea").focus();
  else if (/^[1-5]$/.test(event.key)) take(row, Number(event.key));
  else return;
  event.preventDefault();
}

// Puts the cards into their order, and hides those that were not asked for.
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
  if (isTraining && !rows.some(isRight)) return refuse("Accept or change some captions first: those are what a training learns from.");
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
  if (rows.some(isRight) && !confirm("Your review is not kept. Go on without it?")) return;
  rows = [];
  leftOut = [];
  tell("", 0, 0);
});
for (const name of ["which", "order"]) part(name).addEventListener("change", arrange);
part("filter").addEventListener("input", arrange);
element.querySelectorAll("[data-save]").forEach((button) => button.addEventListener("click", () => save(button.dataset.save)));
part("copy").addEventListener("click", async (event) => {
  await navigator.clipboard.writeText(part("command").textContent);
  event.target.textContent = "Copied";
});
const root = part("root");
root.addEventListener("photos", (event) => start(event.detail));
root.addEventListener("ended", ended);
window.addEventListener("beforeunload", (event) => rows.some(isRight) && event.preventDefault());
watch("value", receive);
