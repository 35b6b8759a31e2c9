() => {
  // Photos that are dropped or pasted anywhere go to the tab that is open.
  const visible = (selector) => [...document.querySelectorAll(selector)].find((each) => each.offsetParent !== null);
  const ENDINGS = SUFFIXES; // of photos, which page.py fills in
  const PICKER = ".photo-input input[type=file]";

  // Browsers know no type of some photos, or not that they are photos, and Gradio would refuse those.
  function typed(file) {
    const ending = file.name.match(/\.\w+$/)?.[0].toLowerCase();
    if (file.type.startsWith("image/") || !ENDINGS.includes(ending)) return file;
    return new File([file], file.name, { type: `image/${ending.slice(1)}` });
  }

  function put(files, input) {
    const list = new DataTransfer();
    for (const file of files) list.items.add(typed(file));
    input.files = list.files;
  }

  async function until(condition) {
    for (let tries = 0; tries < 100; tries++) {
      const met = condition();
      if (met) return met;
      await new Promise((wake) => setTimeout(wake, 20));
    }
  }

  // The photo's input without a photo, ready for another.
  async function clear(tab) {
    const input = tab.querySelector(".photo-input");
    const button = () => input.querySelector('button[aria-label="Remove Image"], button[aria-label="Clear"]');
    button()?.click();
    await until(() => !button());
    return until(() => input.querySelector('input[type="file"]'));
  }

  async function give(photos) {
    if (photos.length > 1 && visible(".photo-tab")) {
      document.querySelectorAll('[role="tab"]').forEach((tab) => tab.textContent.trim() === "Many photos" && tab.click());
      await until(() => visible("#review"));
    }
    const tab = visible(".photo-tab");
    if (!tab) return visible("#review [data-part=root]")?.dispatchEvent(new CustomEvent("photos", { detail: photos }));
    const input = await clear(tab);
    put([photos[0].file], input);
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }

  // The files of what was dropped, those in folders too, each with its path below what was dropped.
  async function photosOf(items) {
    const entries = [...items].map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile()).filter(Boolean), photos = [];
    for (let entry; (entry = entries.shift()); ) {
      if (entry instanceof File) photos.push({ file: entry, name: entry.name });
      else if (entry.isFile) {
        const file = await new Promise((done) => entry.file(done, () => done(null)));
        if (file) photos.push({ file, name: entry.fullPath.replace(/^\//, "") });
      } else {
        const reader = entry.createReader();
        for (let some; (some = await new Promise((done) => reader.readEntries(done, () => done([])))).length; ) entries.push(...some);
      }
    }
    return photos;
  }

  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  window.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  }, true);
  window.addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dropping"), true);
  window.addEventListener("drop", async (event) => {
    document.body.classList.remove("dropping");
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.stopPropagation();
    const photos = await photosOf(event.dataTransfer.items);
    if (photos.length) give(photos);
  }, true);
  window.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    event.stopPropagation();
    give(files.map((file) => ({ file, name: file.name })));
  }, true);
  // So that the browser offers what it does not know to be photos; before it asks for a file.
  window.addEventListener("click", (event) => event.target.matches?.(PICKER) && (event.target.accept = ["image/*", ...ENDINGS].join()), true);
  window.addEventListener("change", (event) => event.target.matches?.(PICKER) && put([...event.target.files], event.target), true);
  document.addEventListener("another", async (event) => (await clear(event.target))?.closest("button")?.focus(), true);
  document.body.dataset.takes = "photos"; // from now on
}
