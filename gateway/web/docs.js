// @ts-check
// The API's description as a page that can try calls out.

const show = /** @type {any} */ (window).SwaggerUIBundle;
show?.({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  // Nothing is sent elsewhere: the default asks a public validator for its opinion.
  validatorUrl: null,
});
