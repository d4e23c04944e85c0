// Starts Swagger UI, the file before this one, on the service's own description.

// Where the service begins: "/", or what a proxy has put before it. The description's paths know of no prefix.
const BASE = new URL(".", document.baseURI).href;
const ORIGIN = `${location.origin}/`;

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  tryItOutEnabled: true,
  validatorUrl: null, // otherwise somebody else's server is asked what it thinks of the description
  requestInterceptor(request) {
    if (!request.url.startsWith(BASE)) request.url = request.url.replace(ORIGIN, BASE);
    return request;
  },
});
