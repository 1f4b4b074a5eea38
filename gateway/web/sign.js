// @ts-check
// The form that asks for a key or a token, where the gateway wants one.

import { byId, complain } from "./elements.js";
import { key, onKey, useKey } from "./key.js";

/** Shows the form when a key is wanted, and a way out when there is one. @param {() => void} changed Who asks has changed. */
export function startSign(changed) {
  const [form, field, error, out] = ["sign", "sign-key", "sign-error", "sign-out"].map(byId);
  onKey((wrong) => {
    out.hidden = key() == null;
    if (wrong == null) {
      form.hidden = true;
      return changed();
    }
    complain(error, wrong ? "That key or token is not accepted, or no longer." : "");
    if (!form.hidden) return;
    form.hidden = false;
    // Whoever is writing elsewhere is left there.
    if (document.activeElement === document.body) field.focus();
  });
  form.addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    if (useKey(field.value)) field.value = "";
    else complain(error, "A key or token has only letters, digits and signs, and no spaces.");
  });
  out.addEventListener("click", () => {
    useKey(null);
    // What the one before could see is not for the next.
    location.reload();
  });
  out.hidden = key() == null;
}
