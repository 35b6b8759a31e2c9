() => {
  // Photos dropped or pasted anywhere on the page go to the open tab.
  const findVisible = (selector) => [...document.querySelectorAll(selector)].find((each) => each.offsetParent !== null);
  const ENDINGS = SUFFIXES; // of photos; filled in by page.py
  const PICKER = ".photo-input input[type=file]";

  // Browsers don't know the media type of some photos, and Gradio would reject those.
  function withType(file) {
    const ending = file.name.match(/\.\w+$/)?.[0].toLowerCase();
    if (file.type.startsWith("image/") || !ENDINGS.includes(ending)) return file;
    return new File([file], file.name, { type: `image/${ending.slice(1)}` });
  }

  function setFiles(files, input) {
    const list = new DataTransfer();
    for (const file of files) list.items.add(withType(file));
    input.files = list.files;
  }

  async function waitFor(condition) {
    for (let tries = 0; tries < 100; tries++) {
      const met = condition();
      if (met) return met;
      await new Promise((wake) => setTimeout(wake, 20));
    }
  }

  // Clears the photo input, and returns it ready for another photo.
  async function clear(tab) {
    const input = tab.querySelector(".photo-input");
    const button = () => input.querySelector('button[aria-label="Remove Image"], button[aria-label="Clear"]');
    button()?.click();
    await waitFor(() => !button());
    return waitFor(() => input.querySelector('input[type="file"]'));
  }

  async function openPhotos(photos) {
    if (photos.length > 1 && findVisible(".photo-tab")) {
      document.querySelectorAll('[role="tab"]').forEach((tab) => tab.textContent.trim() === "Many photos" && tab.click());
      await waitFor(() => findVisible("#review"));
    }
    const tab = findVisible(".photo-tab");
    if (!tab) {
      return findVisible("#review [data-part=root]")?.dispatchEvent(new CustomEvent("photos", { detail: photos }));
    }
    const input = await clear(tab);
    setFiles([photos[0].file], input);
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }

  // All dropped files, including those in folders, each with its path relative to what was dropped.
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
    if (photos.length) openPhotos(photos);
  }, true);
  window.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    event.stopPropagation();
    openPhotos(files.map((file) => ({ file, name: file.name })));
  }, true);
  // Before the file dialog opens: makes the browser offer photos of unknown types too.
  window.addEventListener("click", (event) => event.target.matches?.(PICKER) && (event.target.accept = ["image/*", ...ENDINGS].join()), true);
  window.addEventListener("change", (event) => event.target.matches?.(PICKER) && setFiles([...event.target.files], event.target), true);
  document.addEventListener("another", async (event) => (await clear(event.target))?.closest("button")?.focus(), true);
  document.body.dataset.takes = "photos"; // ready
}
