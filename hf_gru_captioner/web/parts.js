// Prepended to the scripts of the custom components, each the js_on_load of a gr.HTML: `element` is its root,
// `props.value` is exchanged with the server, `watch` calls back when it changes. Untrusted content is inserted as
// text, never as HTML.

const part = (name) => element.querySelector(`[data-part="${name}"]`);
const make = (tag, attributes = {}, text = "") => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
};

async function copy(text, button) {
  button.dataset.label ??= button.textContent; // not that of the last copy
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Can't copy here"; // browsers have no clipboard for http, except from this machine
  }
  setTimeout(() => (button.textContent = button.dataset.label), 1200);
}

