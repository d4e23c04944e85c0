// Requests to the service. Every failure is thrown as a ServiceError with the members of the service's problem document.

const KEY = "transferapp-key";
const MAX_WAIT = 10; // longest Retry-After, in seconds, after which a request is repeated
const ATTEMPTS = 4;
const WAIT_FOR = new Set(["overloaded", "rate_limited", "not_ready", "timeout"]);

/** A failed request: `problem` has `code`, `title`, `detail`, `hint`, `retryAfter` in seconds. */
export class ServiceError extends Error {
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

/** Return the address of a path of the service, below a proxy's prefix if there is one. */
export function address(path, query = {}) {
  const url = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(query)) if (value != null) url.searchParams.set(name, value);
  return url.href;
}

/** Get JSON. */
export const read = (path, query, signal) => ask(address(path, query), { signal });

/**
 * Post an image and return the JSON answer. A busy service is asked again after its Retry-After.
 * `onWait(seconds)` is called before each wait.
 */
export async function send(path, query, image, signal, onWait = () => {}) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await ask(address(path, query), {
        method: "POST",
        body: image,
        headers: { "Content-Type": "application/octet-stream" }, // the bytes decide the format; a file name may be wrong
        signal,
      });
    } catch (error) {
      const { code, retryAfter } = error.problem ?? {};
      if (!WAIT_FOR.has(code) || !retryAfter || retryAfter > MAX_WAIT || attempt === ATTEMPTS) throw error;
      onWait(retryAfter);
      await pause(retryAfter * 1000, signal);
    }
  }
}

/** Get a page as a Blob, with the key. */
export async function download(path, query) {
  return (await respond(address(path, query), {})).blob();
}

async function ask(url, options) {
  const response = await respond(url, options);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError({ code: "network", title: "The service's answer was incomplete", detail: String(error.message) });
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
    throw new ServiceError({ code: "network", title: "The service cannot be reached", detail: String(error.message) });
  }
  if (response.ok) return response;
  let problem;
  try {
    problem = await response.json();
  } catch {
    problem = {}; // such as a proxy's page
  }
  if (typeof problem?.code !== "string") {
    problem = { code: BY_STATUS[response.status] ?? "internal", title: response.statusText, status: response.status };
  }
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  throw new ServiceError({ ...problem, retryAfter });
}

// Codes for answers that a proxy makes itself.
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
