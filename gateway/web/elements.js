// @ts-check
// The page's elements. What a server said only ever becomes text here, never markup.

/** @typedef {Node | string | number | null | undefined | false} Child */

/**
 * @param {Element} made
 * @param {Record<string, any>} properties A function is a listener (`onclick`); `true` an empty attribute; null none.
 * @param {Child[]} children
 */
function furnish(made, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value != null && value !== false) made.setAttribute(name, String(value));
  }
  made.append(...children.filter((child) => child != null && child !== false).map((child) => /** @type {any} */ (child)));
  return made;
}

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, any>} [properties]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function element(tag, properties = {}, ...children) {
  return /** @type {any} */ (furnish(document.createElement(tag), properties, children));
}

/**
 * @param {string} tag
 * @param {Record<string, any>} [properties]
 * @param {...Child} children
 */
export function svg(tag, properties = {}, ...children) {
  return furnish(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

/** The element of that id, which index.html has. @param {string} id @returns {any} */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no ${id}`);
  return found;
}

/** Sets a text if it is another, so that nothing is read out or laid out anew for nothing. @param {Element} where @param {string} text */
export function say(where, text) {
  if (where.textContent !== text) where.textContent = text;
}

/** Shows an error next to where it belongs, or takes it away. @param {HTMLElement} where @param {string} [text] */
export function complain(where, text = "") {
  say(where, text);
  where.hidden = !text;
  if (text) where.dataset.testid = "error";
  else delete where.dataset.testid;
}

/** Tells a screen reader. @param {string} text */
export const announce = (text) => say(byId("announce"), text);

/** An empty `progress` is one without a known end. @param {HTMLProgressElement} bar @param {number | null} value @param {string} label */
export function advance(bar, value, label) {
  if (value == null) bar.removeAttribute("value");
  else bar.value = value;
  bar.setAttribute("aria-label", label);
}

/** A button that copies a text. @param {string} text @param {string} what */
export function copyButton(text, what) {
  const button = element("button", { type: "button", class: "copy", "aria-label": `Copy ${what}` }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without a secure context there is no clipboard but the selection's.
      const area = element("textarea", { class: "unseen" });
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    say(button, "Copied");
    setTimeout(() => say(button, "Copy"), 1500);
  });
  return button;
}
