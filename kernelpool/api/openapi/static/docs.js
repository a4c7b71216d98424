// Shows the gateway's own description, and calls nothing but this gateway.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  docExpansion: "none", // so many operations at once are more than it can draw
  defaultModelsExpandDepth: 0,
  validatorUrl: null, // by default a server of Swagger's would be asked
});
