// Calls to the gateway that served this page, with the caller's key where it asks for one.

const STORED = "tts-key";  // in the tab's own storage: gone when the tab is closed
let onKeyWanted = () => {};

export class ApiError extends Error {
  constructor(message, code, status, retryAfter) {
    super(message);
    Object.assign(this, { code, status, retryAfter });
  }
}

export function hasKey() {
  return sessionStorage.getItem(STORED) !== null;
}

export function keepKey(key) {
  sessionStorage.setItem(STORED, key);
}

export function whenKeyWanted(callback) {
  onKeyWanted = callback;
}

/** Fetch; returns a response that is ok. Throws ApiError with the gateway's own words, or TypeError when it is away. */
export async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  if (hasKey()) headers.set("Authorization", `Bearer ${sessionStorage.getItem(STORED)}`);
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const error = await readError(response);
  if (error.status === 401 || error.code === "forbidden") onKeyWanted(error.message);
  throw error;
}

export async function getJson(path) {
  return (await call(path)).json();
}

async function readError(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // No envelope: something between here and the gateway answered.
  }
  const message = error.message ?? `HTTP ${response.status} without a word why.`;
  return new ApiError(message, error.code, response.status, response.headers.get("Retry-After"));
}
