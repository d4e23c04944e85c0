// Start of Swagger UI with the service's own description.

// Address of the service, below a proxy's prefix if there is one. The paths in the description have none.
const BASE = new URL(".", document.baseURI).href;
const ORIGIN = `${location.origin}/`;

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  tryItOutEnabled: true,
  validatorUrl: null, // the default sends the description to another server
  requestInterceptor(request) {
    if (!request.url.startsWith(BASE)) request.url = request.url.replace(ORIGIN, BASE);
    return request;
  },
});
