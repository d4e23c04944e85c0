// Asks the service. Whatever goes wrong is thrown as a Trouble with the members of the service's problem document.

const KEY = "transferapp-key";
const PATIENCE = 10; // seconds of Retry-After that are waited for without being asked
const ATTEMPTS = 4;
const WAIT_FOR = new Set(["overloaded", "rate_limited", "not_ready", "timeout"]);

/** What went wrong: `problem` has `code`, `title`, `detail`, `hint`, `retryAfter` in seconds. */
export class Trouble extends Error {
  constructor(problem) {
    super(problem.title);
    this.problem = problem;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** The address of a path of the service, also where a proxy has put it below a prefix. */
export function address(path, query = {}) {
  const url = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(query)) if (value != null) url.searchParams.set(name, value);
  return url.href;
}

/** GET as JSON. */
export const read = (path, query, signal) => ask(address(path, query), { signal });

/**
 * POST an image; JSON. Where the service asks for a little patience it gets it.
 * `onWait(seconds)` is told of each wait.
 */
export async function send(path, query, image, signal, onWait = () => {}) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await ask(address(path, query), {
        method: "POST",
        body: image,
        headers: { "Content-Type": "application/octet-stream" }, // the bytes say what it is, the name's ending may not
        signal,
      });
    } catch (error) {
      const { code, retryAfter } = error.problem ?? {};
      if (!WAIT_FOR.has(code) || !retryAfter || retryAfter > PATIENCE || attempt === ATTEMPTS) throw error;
      onWait(retryAfter);
      await pause(retryAfter * 1000, signal);
    }
  }
}

/** The bytes of a page, as a Blob, with the key. */
export async function download(path, query) {
  return (await respond(address(path, query), {})).blob();
}

async function ask(url, options) {
  const response = await respond(url, options);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble({ code: "network", title: "The service's answer broke off", detail: String(error.message) });
  }
}

async function respond(url, options) {
  const headers = { ...options.headers };
  if (key.get()) headers["X-API-Key"] = key.get();
  let response;
  try {
    response = await fetch(url, { ...options, headers, credentials: "same-origin", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble({ code: "network", title: "The service cannot be reached", detail: String(error.message) });
  }
  if (response.ok) return response;
  let problem;
  try {
    problem = await response.json();
  } catch {
    problem = {}; // a proxy's page, say
  }
  if (typeof problem?.code !== "string") {
    problem = { code: BY_STATUS[response.status] ?? "internal", title: response.statusText, status: response.status };
  }
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  throw new Trouble({ ...problem, retryAfter });
}

// What a proxy in front may answer by itself.
const BY_STATUS = { 401: "unauthorized", 413: "body_too_large", 429: "rate_limited", 502: "network", 503: "overloaded", 504: "timeout" };

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
