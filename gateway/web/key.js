// @ts-check
// Who asks: the key or token that a person gave, kept for as long as this tab lives and sent to this origin alone.

/** Where it is kept. */
const KEPT = "millrace-key";
/** What a header can carry. */
const VISIBLE = /^[\x21-\x7e]+$/;

/** Told when who asks has changed, or is asked for: `true` when what was given last was no good. @type {Set<(wrong: boolean | null) => void>} */
const told = new Set();

/** @param {(wrong: boolean | null) => void} listener `null`: it is settled; else a key is wanted. */
export const onKey = (listener) => told.add(listener);

/** The key in use. @returns {string | null} */
export function key() {
  try {
    return sessionStorage.getItem(KEPT);
  } catch {
    // A browser may forbid storage; then nothing is kept.
    return null;
  }
}

/** Uses a key from now on, or none. @param {string | null} given @returns {boolean} Whether it can be one. */
export function useKey(given) {
  const text = given?.trim() ?? "";
  if (given != null && !VISIBLE.test(text)) return false;
  if (given == null) sessionStorage.removeItem(KEPT);
  else sessionStorage.setItem(KEPT, text);
  for (const listener of told) listener(null);
  return true;
}

/** The headers that say who asks. @returns {Record<string, string>} */
export function headers() {
  const given = key();
  return given ? { authorization: `Bearer ${given}` } : {};
}

/** Says how an answer took the key it was asked with. @param {number} status @param {string | undefined} sent Its `authorization`. */
export function answered(status, sent) {
  // An answer to a key that is not used any more says nothing of the one that is.
  if (status !== 401 || sent !== headers().authorization) return;
  for (const listener of told) listener(sent != null);
}
