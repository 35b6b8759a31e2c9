// The beginning of the scripts of our own components, each js_on_load of a gr.HTML: `element` is its root, `props.value` what
// goes to and comes from the server, `watch` calls back when it changes. Whatever came from outside is put in as text, never as HTML.

const part = (name) => element.querySelector(`[data-part="${name}"]`);
const make = (tag, attributes = {}, text = "") => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
};

